//! Hooks that images have and no node runs.

/// Labels of sealos that are no commands here, and why.
const NOT_RUN: [(&str, &str); 2] = [
    ("auth", "nodes log in to registries with what their own configuration says"),
    (
        "image",
        "no load balancer is started of the image that it names: --endpoint says where all nodes find the control plane",
    ),
];

/// Says which of these hooks are not run, and why.
pub fn not_run<'a>(hooks: impl Iterator<Item = &'a String>) -> impl Iterator<Item = String> {
    let reason = |hook: &String| NOT_RUN.iter().find(|(name, _)| name == hook);
    hooks.filter_map(reason).map(|(name, reason)| format!("the image's label {name} is not run: {reason}"))
}
