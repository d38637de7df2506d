//! The layouts of sealer and sealos, with everything that needs no rendering.

use cluster::discover::{Layout, Options};

use super::tree::{discover, images, problems, tree, write};

const POD: &str = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: quay.io/a/b:v1\n";

#[tokio::test]
async fn sealers_lists_and_manifests_are_read() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let dir = tree(&[
        ("Metadata", r#"{"version": "v1", "arch": "amd64"}"#),
        ("imageList", "# all\nbusybox\n"),
        ("manifests/imageList", &format!("nginx:1\n\"redis@{digest}\"\n")),
        ("manifests/deep/er/pod.yaml", POD),
        (
            "manifests/pod.json",
            r#"{"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"image": "c:2"}]}}"#,
        ),
        ("manifests/README.md", "image: nope:1"),
        ("application/apps/shop/web.yml", &POD.replace("a/b:v1", "shop:v2")),
        ("application/apps/shop/imageList", "extra:3\n"),
        ("application/apps/shop/start.sh", "image: nope:2\n"),
        ("etc/kubeadm.yml", POD.replace("a/b", "not/read").as_str()),
    ]);
    let found = discover(&dir, Options::default()).await;
    assert_eq!(found.layout, Some(Layout::Sealer));
    assert_eq!(problems(&found), Vec::<String>::new());
    let expected = [
        "docker.io/library/busybox:latest imageList:2".to_owned(),
        "docker.io/library/c:2 manifests/pod.json:1".to_owned(),
        "docker.io/library/extra:3 application/apps/shop/imageList:1".to_owned(),
        "docker.io/library/nginx:1 manifests/imageList:1".to_owned(),
        format!("docker.io/library/redis@{digest} manifests/imageList:2"),
        "quay.io/a/b:v1 manifests/deep/er/pod.yaml:5".to_owned(),
        "quay.io/shop:v2 application/apps/shop/web.yml:5".to_owned(),
    ];
    assert_eq!(images(&found), expected);
}

#[tokio::test]
async fn sealos_shims_and_archives_are_read() {
    let dir = tree(&[
        ("images/shim/CalicoImageList", "docker.io/calico/node:v3\nquay.io/a/b:v1\n"),
        ("images/shim/deep/er/anything", "containers-storage:docker.io/library/own:v1\n"),
        ("images/shim/.gitkeep", "nope\n"),
        ("images/skopeo/tar.txt", "docker-archive:own.tar@own:v1\n"),
        ("manifests/pod.yaml", POD),
        ("opt/helm", ""),
    ]);
    let found = discover(&dir, Options::default()).await;
    assert_eq!(found.layout, Some(Layout::Sealos));
    let expected = [
        "docker.io/calico/node:v3 images/shim/CalicoImageList:1",
        "docker.io/library/own:v1 images/shim/deep/er/anything:1, images/skopeo/tar.txt:1",
        "quay.io/a/b:v1 images/shim/CalicoImageList:2, manifests/pod.yaml:5",
    ];
    assert_eq!(images(&found), expected);
    let own = found.images.iter().find(|image| image.reference.to_string().contains("own")).unwrap();
    assert_eq!(own.archive.as_ref().unwrap().path, "images/skopeo/own.tar");
}

#[tokio::test]
async fn what_is_ignored_is_not_read() {
    let dir = tree(&[
        (".sealignore", "# not these\n/manifests/old/\n*.bak.yaml\n!keep.bak.yaml\n"),
        ("manifests/old/pod.yaml", POD),
        ("manifests/a.bak.yaml", POD),
        ("manifests/keep.bak.yaml", &POD.replace("a/b", "kept/one")),
        ("manifests/flag/pod.yaml", POD),
    ]);
    let options = Options { ignore: vec!["**/flag".to_owned()], ..Options::default() };
    let found = discover(&dir, options).await;
    assert_eq!(images(&found), ["quay.io/kept/one:v1 manifests/keep.bak.yaml:5"]);
}

#[tokio::test]
async fn what_cannot_be_read_is_named_with_its_line_and_hides_nothing() {
    let dir = tree(&[
        ("imageList", "nginx:1\nUPPER/case:1\n"),
        (
            "manifests/broken.yaml",
            "a: [\n---\napiVersion: v1\nkind: Pod\nspec: {containers: [{image: 'x y'}, {image: b:1}]}\n",
        ),
    ]);
    write(dir.path(), "manifests/latin1.yaml", b"a: \xe9\n");
    let found = discover(&dir, Options::default()).await;
    let images = images(&found);
    assert_eq!(
        images,
        ["docker.io/library/b:1 manifests/broken.yaml:5", "docker.io/library/nginx:1 imageList:1"]
    );
    let problems = problems(&found);
    for (index, start) in [
        "imageList:2: ",
        "manifests/broken.yaml:1: no YAML",
        "manifests/broken.yaml:5: ",
        "manifests/latin1.yaml: ",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(problems[index].starts_with(start), "{problems:?}");
    }
    assert_eq!(problems.len(), 4);
}

#[tokio::test]
async fn why_finds_an_image_by_any_of_its_names() {
    let dir = tree(&[("imageList", "docker.io/library/nginx:1\nnginx:2\nquay.io/nginx:1\n")]);
    let found = discover(&dir, Options::default()).await;
    let lines = |text: &str| -> Vec<usize> {
        found.why(text).unwrap().iter().flat_map(|image| &image.origins).map(|origin| origin.line).collect()
    };
    assert_eq!(lines("nginx:1"), [1]);
    assert_eq!(lines("nginx"), [1, 2]);
    assert_eq!(lines("quay.io/nginx"), [3]);
    assert_eq!(lines("redis"), Vec::<usize>::new());
    assert!(found.why("No Reference").is_err());
}

#[tokio::test]
async fn kustomized_manifests_ask_for_what_is_put_in_place() {
    let dir = tree(&[
        ("manifests/app/pod.yaml", &POD.replace("quay.io/a/b:v1", "placeholder")),
        (
            "manifests/app/kustomization.yaml",
            "resources: [pod.yaml]\nimages:\n- name: placeholder\n  newName: quay.io/real\n  newTag: v3\n",
        ),
    ]);
    let found = discover(&dir, Options::default()).await;
    assert_eq!(images(&found), ["quay.io/real:v3 manifests/app/kustomization.yaml:3"]);
}
