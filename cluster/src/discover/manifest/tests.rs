//! The shapes in which images are asked for, as a table: text, and what is found with its line (`?` before candidates).

use super::*;

fn found(file: &str, text: &str) -> Vec<String> {
    let context = Context { file: file.to_owned(), way: Way::Manifest, values: None };
    let requests = read(&context, text);
    let mut found: Vec<_> = requests.problems.iter().map(|p| format!("{}!", p.line.unwrap_or(0))).collect();
    found.extend(requests.warnings.iter().map(|p| format!("{}~", p.line.unwrap_or(0))));
    found.extend(requests.requests.iter().map(|request| {
        let candidate = if request.origin.way == Way::Shape { "?" } else { "" };
        format!("{}{candidate} {}", request.origin.line, request.text)
    }));
    found.sort();
    found
}

const POD: &str = "{containers: [{image: a}]}";

/// Name of the shape, text, what is found: line and image; `?` a candidate, `!` an error, `~` a warning.
const SHAPES: &[(&str, &str, &[&str])] = &[
    (
        "a pod",
        "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - name: x\n    image: nginx:1\n",
        &["6 nginx:1"],
    ),
    (
        "a tag and a digest",
        "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: 'h/a:1@sha256:0'}]}",
        &["3 h/a:1@sha256:0"],
    ),
    ("init containers", "apiVersion: v1\nkind: Pod\nspec:\n  initContainers:\n  - image: a\n", &["5 a"]),
    (
        "a sidecar",
        "apiVersion: v1\nkind: Pod\nspec:\n  initContainers:\n  - {image: a, restartPolicy: Always}\n",
        &["5 a"],
    ),
    (
        "ephemeral containers",
        "apiVersion: v1\nkind: Pod\nspec:\n  ephemeralContainers:\n  - image: a\n",
        &["5 a"],
    ),
    (
        "an image as a volume",
        "apiVersion: v1\nkind: Pod\nspec:\n  volumes:\n  - image:\n      reference: a:1\n",
        &["6 a:1"],
    ),
    ("volumes of other kinds", "apiVersion: v1\nkind: Pod\nspec:\n  volumes:\n  - rbd: {image: disk}\n", &[]),
    (
        "JSON",
        "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"spec\": {\"containers\": [{\"image\": \"a\"}]}}",
        &["1 a"],
    ),
    ("no image", "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a}, {image: ''}, {image: }]}", &[]),
    ("a number for an image", "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: 1}]}", &["3!"]),
    (
        "several documents",
        "---\n---\napiVersion: v1\nkind: Pod\nspec: {containers: [{image: a}]}\n---\napiVersion: v1\nkind: Pod\nspec: {containers: [{image: b}]}\n",
        &["5 a", "9 b"],
    ),
    (
        "a broken document among them",
        "a: [\nb: }\n---\napiVersion: v1\nkind: Pod\nspec: {containers: [{image: b}]}\n",
        &["1!", "6 b"],
    ),
    (
        "an anchor and a merge",
        "x: &x {image: a}\napiVersion: v1\nkind: Pod\nspec: {containers: [{<<: *x, name: y}]}\n",
        &["1 a"],
    ),
    (
        "an alias",
        "x: &x [{image: a}]\napiVersion: v1\nkind: Pod\nspec: {containers: *x, initContainers: *x}\n",
        &["1 a"],
    ),
    (
        "a list",
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  spec: {containers: [{image: a}]}\n",
        &["6 a"],
    ),
    (
        "a list in a list",
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: List\n  items:\n  - {apiVersion: v1, kind: Pod, spec: {containers: [{image: a}]}}\n",
        &["7 a"],
    ),
    (
        "a list of a kind",
        "apiVersion: apps/v1\nkind: DeploymentList\nitems:\n- spec: {template: {spec: {containers: [{image: a}]}}}\n",
        &["4 a"],
    ),
    (
        "a list of a kind with kinds",
        "apiVersion: v1\nkind: PodList\nitems:\n- {apiVersion: v1, kind: Pod, spec: {containers: [{image: a}]}}\n",
        &["4 a"],
    ),
    (
        "a config map",
        "apiVersion: v1\nkind: ConfigMap\ndata:\n  image: nginx:1\n  x: |\n    image: nginx:2\n",
        &[],
    ),
    (
        "a text",
        "apiVersion: v1\nkind: Pod\nspec: {containers: [{command: [sh, -c, 'image: nginx:1'], env: [{name: image, value: b}]}]}",
        &[],
    ),
    ("a comment", "apiVersion: v1\nkind: Pod\n# image: nginx:1\nspec: {}\n", &[]),
    ("values of a chart", "image: nginx:1\nsidecar: {image: {repository: a, tag: b}}\n", &[]),
    (
        "a definition of resources",
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nspec: {image: a, x: {image: {type: string}}}\n",
        &[],
    ),
    (
        "Flux, by tag",
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: OCIRepository\nspec:\n  url: oci://ghcr.io/a/b\n  ref: {tag: v1}\n",
        &["4 ghcr.io/a/b:v1"],
    ),
    (
        "Flux, by digest",
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: OCIRepository\nspec:\n  url: oci://a.b/c\n  ref: {tag: v1, digest: 'sha256:0'}\n",
        &["4 a.b/c@sha256:0"],
    ),
    (
        "Flux, without ref",
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: OCIRepository\nspec: {url: 'oci://a.b/c'}\n",
        &["3 a.b/c"],
    ),
    (
        "Flux, by range",
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: OCIRepository\nspec: {url: 'oci://a.b/c', ref: {semver: '>=1'}}\n",
        &["3~"],
    ),
    (
        "Flux, no registry",
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: OCIRepository\nspec: {url: 'https://a.b/c'}\n",
        &["3!"],
    ),
    (
        "Flux's kustomization",
        "apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\nspec:\n  images:\n  - {name: a, newName: b.c/a, newTag: v2}\n",
        &["5 b.c/a:v2"],
    ),
    (
        "values in a HelmRelease",
        "apiVersion: helm.toolkit.fluxcd.io/v2\nkind: HelmRelease\nspec:\n  values:\n    image:\n      repository: a.b/c\n      tag: 1.2\n",
        &["6? a.b/c:1.2"],
    ),
    (
        "a kustomization's tag",
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nimages:\n- {name: a, newTag: v2}\n",
        &["4 a:v2"],
    ),
    (
        "a kustomization's digest",
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nimages:\n- {name: a, newName: b/a, digest: 'sha256:0'}\n",
        &["4 b/a@sha256:0"],
    ),
    (
        "a kustomization's name alone",
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nimages:\n- {name: a, newName: b/a}\n",
        &[],
    ),
    (
        "a component",
        "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nimages:\n- {name: a, newTag: '3'}\n",
        &["4 a:3"],
    ),
    (
        "an image in a custom resource",
        "apiVersion: monitoring.coreos.com/v1\nkind: Prometheus\nspec:\n  image: quay.io/p/p:v2\n  containers:\n  - image: side:1\n",
        &["4? quay.io/p/p:v2", "6? side:1"],
    ),
    (
        "repository and tag",
        "apiVersion: x.io/v1\nkind: X\nspec:\n  any:\n    repository: a/b\n    tag: '1'\n",
        &["5? a/b:1"],
    ),
    (
        "registry, repository, digest",
        "apiVersion: x.io/v1\nkind: X\nspec:\n  image:\n    registry: q.io\n    repository: a/b\n    tag: v1\n    digest: sha256:0\n",
        &["6? q.io/a/b:v1@sha256:0"],
    ),
    (
        "a repository alone",
        "apiVersion: x.io/v1\nkind: X\nspec: {repository: 'https://git.example/a'}\n",
        &[],
    ),
    (
        "repository, image, version",
        "apiVersion: nvidia.com/v1\nkind: ClusterPolicy\nspec:\n  driver:\n    repository: nvcr.io/nvidia\n    image: driver\n    version: 550\n",
        &["6? nvcr.io/nvidia/driver:550"],
    ),
    (
        "an image with its tag beside it",
        "apiVersion: x.io/v1\nkind: X\nspec: {image: a/b, tag: v1}\n",
        &["3? a/b:v1"],
    ),
    ("a schema", "apiVersion: x.io/v1\nkind: X\nspec: {image: {type: string}, tag: {type: string}}\n", &[]),
    ("a switch", "apiVersion: x.io/v1\nkind: X\nspec: {image: true}\n", &[]),
    (
        "a workload of somebody else's",
        "apiVersion: apps.kruise.io/v1\nkind: Deployment\nspec: {template: {spec: {containers: [{image: a}]}}}\n",
        &["3? a"],
    ),
    ("no object", "- a\n- image: b\n", &[]),
    ("nothing", "", &[]),
];

#[test]
fn every_shape_gives_what_it_asks_for_and_nothing_else() {
    for (name, text, expected) in SHAPES {
        assert_eq!(found("file.yaml", text), *expected, "{name}");
    }
}

#[test]
fn every_workload_has_a_pod() {
    for (kind, version, spec) in [
        ("Pod", "v1", format!("spec: {POD}")),
        ("PodTemplate", "v1", format!("template: {{spec: {POD}}}")),
        ("ReplicationController", "v1", format!("spec: {{template: {{spec: {POD}}}}}")),
        ("Deployment", "apps/v1", format!("spec: {{template: {{spec: {POD}}}}}")),
        ("Deployment", "extensions/v1beta1", format!("spec: {{template: {{spec: {POD}}}}}")),
        ("StatefulSet", "apps/v1", format!("spec: {{template: {{spec: {POD}}}}}")),
        ("DaemonSet", "apps/v1", format!("spec: {{template: {{spec: {POD}}}}}")),
        ("ReplicaSet", "apps/v1", format!("spec: {{template: {{spec: {POD}}}}}")),
        ("Job", "batch/v1", format!("spec: {{template: {{spec: {POD}}}}}")),
        ("CronJob", "batch/v1", format!("spec: {{jobTemplate: {{spec: {{template: {{spec: {POD}}}}}}}}}")),
    ] {
        let text = format!("apiVersion: {version}\nkind: {kind}\n{spec}\n");
        assert_eq!(found("x.yaml", &text), ["3 a"], "{kind}");
    }
}

#[test]
fn a_kustomization_is_known_by_its_name_alone() {
    let text = "images:\n- {name: a, newTag: '1'}\n";
    assert_eq!(found("manifests/kustomization.yaml", text), ["2 a:1"]);
    assert_eq!(found("manifests/other.yaml", text), Vec::<String>::new());
}

#[test]
fn a_kustomization_replaces_the_images_of_its_resources() {
    let pods = "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: 'app:dev'}, {image: 'h:5/db:1'}, {image: c}]}\n";
    let over = "resources: [../base/pods.yaml]\nimages:\n- {name: app, newTag: v1}\n- {name: 'h:5/db', newName: q/db}\n";
    let files = [("m/base/pods.yaml", pods), ("m/over/kustomization.yaml", over)];
    assert_eq!(kustomized(&files), ["app:v1", "c", "q/db:1"]);
}

/// What is asked for once kustomizations among the files are applied.
fn kustomized(files: &[(&str, &str)]) -> Vec<String> {
    let (mut kustomizations, mut requests) = (Vec::new(), Requests::default());
    for (file, text) in files {
        if kustomize::is_kustomization(file) {
            kustomizations.push(kustomize::Kustomization::read(std::path::Path::new(file), text));
        }
        let context = Context { file: (*file).to_owned(), way: Way::Manifest, values: None };
        requests.add(read(&context, text));
    }
    kustomize::apply(&kustomizations, &mut requests);
    let problems: Vec<_> = requests.problems.iter().map(ToString::to_string).collect();
    let mut asked: Vec<_> =
        requests.requests.into_iter().map(|request| request.text).chain(problems).collect();
    asked.sort();
    // One place may ask through several.
    asked.dedup();
    asked
}

#[test]
fn a_kustomization_replaces_the_images_of_its_bases() {
    let pods =
        "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: 'app:placeholder'}, {image: 'db:1'}]}\n";
    let files = |over: &[(&'static str, &'static str)]| {
        let base = [
            ("m/base/pods.yaml", pods),
            ("m/base/kustomization.yaml", "resources: [pods.yaml]\nimages: [{name: db, newTag: '2'}]\n"),
        ];
        kustomized(&[over, &base].concat())
    };
    assert_eq!(files(&[]), ["app:placeholder", "db:2"]);
    // After the base's own, and with the tag of what it replaces where it says none.
    let over = [(
        "m/over/kustomization.yaml",
        "resources: [../base]\nimages:\n- {name: app, newName: q.io/app}\n- {name: db, newTag: '3'}\n",
    )];
    assert_eq!(files(&over), ["db:3", "q.io/app:placeholder"]);
    // Two of one base, and one of these two.
    let two = [
        ("m/dev/kustomization.yaml", "bases: [../base]\nimages: [{name: app, newTag: dev}]\n"),
        ("m/prod/kustomization.yaml", "resources: [../base/]\nimages: [{name: app, newName: p/app}]\n"),
        ("m/all/kustomization.yaml", "resources: [../dev, ../prod]\nimages: [{name: db, newTag: '4'}]\n"),
    ];
    assert_eq!(files(&two), ["app:dev", "db:4", "p/app:placeholder"]);
    // A component's images are for who names it.
    let component = [
        (
            "m/part/kustomization.yaml",
            "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nimages: [{name: app, newTag: part}]\n",
        ),
        ("m/over/kustomization.yaml", "resources: [../base]\ncomponents: [../part]\n"),
    ];
    assert_eq!(files(&component), ["app:part", "db:2"]);
}

#[test]
fn two_kustomizations_in_one_folder_are_an_error() {
    let said = kustomized(&[
        ("m/kustomization.yaml", "images: [{name: app, newTag: v1}]\n"),
        ("m/kustomization.yml", "images: [{name: app, newTag: v2}]\n"),
        ("m/other/kustomization.yaml", "images: [{name: app, newTag: v3}]\n"),
    ]);
    let expected =
        "m/kustomization.yml: its folder has m/kustomization.yaml too: kustomize builds none that has two";
    assert_eq!(said, ["app:v1", "app:v2", "app:v3", expected]);
}

#[test]
fn kustomizations_in_each_other_and_outside_of_the_tree_end() {
    let pod = "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: a}]}\n";
    let round = [
        ("x/kustomization.yaml", "resources: [../y, pod.yaml]\n"),
        ("y/kustomization.yaml", "resources: [../x, ../../../x/pod.yaml]\n"),
        ("x/pod.yaml", pod),
    ];
    assert_eq!(kustomized(&round), ["a"]);
    let folder = |number: usize| format!("{}kustomization.yaml", "d/".repeat(number));
    let deep: Vec<_> = (0..100).map(|number| (folder(number), "resources: [d]\n")).collect();
    let deep: Vec<_> = deep.iter().map(|(file, text)| (file.as_str(), *text)).collect();
    let said = kustomized(&deep);
    assert!(!said.is_empty() && said.iter().all(|said| said.contains("more than 32 deep")), "{said:?}");
}

#[test]
fn many_aliases_of_one_list_are_looked_at_once() {
    let mut text = "x: &x\n".to_owned();
    text += &"- {image: a}\n".repeat(1000);
    text += "y: &y {apiVersion: v1, kind: Pod, spec: {containers: *x}}\napiVersion: v1\nkind: List\nitems:\n";
    text += &"- *y\n".repeat(10_000);
    assert_eq!(found("x.yaml", &text).len(), 1000);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "([a-z:@/{}\\[\\]\"' #-]|image: |kind: |items: |\\*x|&x |Pod|List|\n|  ){0,80}") {
        for file in ["x.yaml", "kustomization.yaml"] {
            let _ = found(file, &text);
            let _ = found(file, &format!("apiVersion: x.io/v1\nkind: X\nspec:\n  {text}"));
            kustomized(&[(file, &text)]);
        }
    }
}
