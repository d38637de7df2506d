//! Images in Kubernetes' objects: every object is parsed, and asked by its kind where it describes pods.
//!
//! | file | objects |
//! |---|---|
//! | `workload` | Pod, and all that have a pod template |
//! | `flux` | OCIRepository, Kustomization of Flux |
//! | `kustomize` | the `images` of a kustomization |
//! | `shape` | objects that nobody here knows: candidates |
//!
//! Lists (`kind: List`, `DeploymentList`, …) are what they hold. Each value is looked at once, however many aliases it has, so
//! the work is bounded by the text.

mod flux;
pub(crate) mod kustomize;
mod shape;
mod workload;

use std::collections::HashSet;

use super::ask::{Origin, Request, Requests, Way};
use yaml::{NodeId, Value};

/// Which text is read, and how it came to be.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// The file, as a path in the tree.
    pub(crate) file: String,
    /// What requests of this text are.
    pub(crate) way: Way,
    /// The set of values that it was rendered with.
    pub(crate) values: Option<String>,
}

/// Groups of Kubernetes' own API: their objects have no images but where a pod is described.
const OWN_GROUPS: &[&str] = &[
    "",
    "apps",
    "autoscaling",
    "batch",
    "extensions",
    "policy",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
];

/// What the objects of `text` ask for.
pub(crate) fn read(context: &Context, text: &str) -> Requests {
    let parsed = yaml::parse(text);
    let mut requests = Requests::default();
    for error in parsed.errors {
        requests.problem(&context.file, error.line, format!("no YAML: {}", error.reason));
    }
    for document in &parsed.documents {
        let mut reader = Reader { context, requests: &mut requests, seen: HashSet::new() };
        reader.object(document.root(), None, 0);
    }
    requests
}

/// How deep lists may lie in lists.
const LISTS_LIMIT: usize = 16;

/// Reads one document.
struct Reader<'a> {
    context: &'a Context,
    requests: &'a mut Requests,
    /// The values that were looked at as what they are.
    seen: HashSet<(Role, NodeId)>,
}

/// What a value may be looked at as.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Role {
    Object,
    Items,
    Pod,
    Containers,
    Container,
    Volumes,
    Volume,
    Shape,
}

/// An object's type.
#[derive(Clone, Copy, Debug)]
struct Type<'a> {
    group: &'a str,
    kind: &'a str,
}

impl<'a> Type<'a> {
    /// The type that an object states; where it has none, that of the list that it is in.
    fn of(object: Value<'a>, listed: Option<Type<'a>>) -> Option<Self> {
        let (version, kind) = (object.get("apiVersion"), object.get("kind"));
        let Some(kind) = kind.and_then(Value::string) else { return listed };
        let version = version.and_then(Value::text).unwrap_or_default();
        // `v1` is the core group's.
        let group = version.split_once('/').map_or("", |(group, _)| group);
        Some(Self { group, kind })
    }
}

/// Whether helm makes `object` for `helm test` alone.
fn is_test(object: Value<'_>) -> bool {
    let hooks = object.at_path(&["metadata", "annotations", "helm.sh/hook"]).and_then(Value::text);
    let is_test = |hook: &str| matches!(hook.trim(), "test" | "test-success" | "test-failure");
    hooks.is_some_and(|hooks| hooks.split(',').all(is_test))
}

impl<'a> Reader<'_> {
    /// Whether `value` was not looked at as `role` yet.
    fn first(&mut self, role: Role, value: Value<'_>) -> bool {
        self.seen.insert((role, value.id()))
    }

    fn object(&mut self, object: Value<'a>, listed: Option<Type<'a>>, depth: usize) {
        if !object.is_mapping() || !self.first(Role::Object, object) {
            return;
        }
        if self.context.way == Way::Chart && is_test(object) {
            return;
        }
        let Some(found) = Type::of(object, listed) else {
            if kustomize::is_kustomization(&self.context.file) {
                self.kustomization(object);
            }
            return;
        };
        if let Some(kind) = found.kind.strip_suffix("List")
            && let Some(items) = object.get("items")
        {
            if depth == LISTS_LIMIT {
                let reason = format!("lists in lists, more than {LISTS_LIMIT} deep");
                self.requests.problem(&self.context.file, object.line(), reason);
            } else if self.first(Role::Items, items) {
                let listed = (!kind.is_empty()).then_some(Type { group: found.group, kind });
                items.items().for_each(|item| self.object(item, listed, depth + 1));
            }
            return;
        }
        match found.group {
            "source.toolkit.fluxcd.io" if found.kind == "OCIRepository" => self.oci_repository(object),
            "kustomize.toolkit.fluxcd.io" => self.flux_kustomization(object),
            "kustomize.config.k8s.io" => self.kustomization(object),
            group if OWN_GROUPS.contains(&group) => self.workload(found.kind, object),
            _ => self.shapes(object),
        }
    }

    /// Asks for the image that `value` names.
    fn ask(&mut self, value: Value<'_>) {
        match value.string() {
            Some(text) => self.ask_text(text, value.line(), self.context.way),
            // An object without image is no request: whoever makes the pod puts it in.
            None if value.is_null() => {}
            None => {
                self.requests.problem(&self.context.file, value.line(), "the image is no string");
            }
        }
    }

    fn ask_text(&mut self, text: &str, line: usize, way: Way) {
        let (file, values) = (self.context.file.clone(), self.context.values.clone());
        let origin = Origin { file, line, way, values };
        self.requests.requests.push(Request { text: text.to_owned(), origin, archive: None });
    }
}

#[cfg(test)]
mod tests;
