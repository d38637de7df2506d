//! Both systems' words, read and written.

use super::*;

fn words(words: &[(&str, &str)]) -> Words {
    words.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

const METADATA: &str = r#"{
  "version": "v1.19.8",
  "arch": "amd64",
  "variant": "",
  "kubeVersion": ">=1.18",
  "NydusFlag": true,
  "ClusterRuntime": "k8s",
  "more": {"kept": true}
}
"#;

fn sealer() -> (Words, Words) {
    let labels = words(&[
        ("cluster.alpha.sealer.io/container-runtime-type", "containerd"),
        ("cluster.alpha.sealer.io/container-runtime-version", "1.7.3"),
        ("cluster.alpha.sealer.io/cluster-runtime-type", "kubernetes"),
        ("cluster.alpha.sealer.io/cluster-runtime-version", "v1.22.15"),
        ("cluster.alpha.sealer.io/kube-cni-calico", "true"),
        ("cluster.alpha.sealer.io/kube-csi-off", "false"),
        ("io.sealer.version", "0.11.0"),
    ]);
    let annotations = words(&[
        (
            "sealer.image.extension",
            r#"{"buildClient":{"sealerVersion":"0.9.0"},"schemaVersion":"v1alpha1","type":"kube-installer","applications":[{"name":"web","type":"shell","launchfiles":["a.sh"],"version":"v1"}],"launch":{"cmds":["ls","-l"],"app_names":null}}"#,
        ),
        (
            "sealer.image.container.images",
            r#"[{"image":"nginx:1","appName":"web","platform":{"os":"linux","architecture":"amd64"}}]"#,
        ),
    ]);
    (labels, annotations)
}

#[test]
fn sealers_words_are_read() {
    let (labels, annotations) = sealer();
    let found = Description::read(&labels, &annotations, Some(METADATA)).unwrap();
    assert_eq!(found.kind, Some(Kind::Rootfs));
    assert_eq!((found.version.as_deref(), found.kube_versions.as_deref()), (Some("v1.19.8"), Some(">=1.18")));
    assert_eq!(found.architecture, Some(("amd64".to_owned(), String::new())));
    assert_eq!(found.container_runtime.version.as_deref(), Some("1.7.3"));
    // The label is newer than the file.
    assert_eq!(found.cluster_runtime.name.as_deref(), Some("kubernetes"));
    assert_eq!((found.cni.len(), found.csi.len(), found.nydus), (1, 0, true));
    assert_eq!(found.launch.cmds, ["ls", "-l"]);
    assert_eq!((found.applications[0].name.as_str(), found.applications[0].kind.as_str()), ("web", "shell"));
    assert_eq!((found.images[0].image.as_str(), found.images[0].app_name.as_str()), ("nginx:1", "web"));
}

#[test]
fn what_has_metadata_is_a_root_file_system_unless_it_says_otherwise() {
    let kind = |labels: &[(&str, &str)], metadata| {
        Description::read(&words(labels), &Words::new(), metadata).unwrap().kind
    };
    assert_eq!(kind(&[], Some(METADATA)), Some(Kind::Rootfs));
    assert_eq!(kind(&[("sealos.io.type", "application")], Some(METADATA)), Some(Kind::Application));
    assert_eq!(kind(&[], None), None);
}

#[test]
fn sealos_words_are_read() {
    let labels = words(&[
        ("sealos.io.type", "rootfs"),
        ("sealos.io.version", "v1beta1"),
        ("sealos.io.distribution", "k3s"),
        ("version", "v1.30.0"),
        ("init", "bash init.sh"),
        ("init-registry", "bash init-registry.sh"),
        ("clean", ""),
    ]);
    let found = Description::read(&labels, &Words::new(), None).unwrap();
    assert_eq!((found.kind, found.version.as_deref()), (Some(Kind::Rootfs), Some("v1.30.0")));
    assert_eq!(found.cluster_runtime.name.as_deref(), Some("k3s"));
    assert_eq!(found.hooks.keys().collect::<Vec<_>>(), ["init", "init-registry"]);
    assert_eq!(
        Description::read(&words(&[("sealos.io.type", "patch")]), &Words::new(), None).unwrap().kind,
        Some(Kind::Patch)
    );
}

#[test]
fn what_is_written_is_read_as_the_same_by_both() {
    let (labels, annotations) = sealer();
    let mut found = Description::read(&labels, &annotations, Some(METADATA)).unwrap();
    found.hooks.insert("init".to_owned(), "bash init.sh".to_owned());
    let written = (found.labels(), found.annotations(), found.metadata());
    let again = Description::read(&written.0, &written.1, Some(&written.2)).unwrap();
    assert_eq!((again.labels(), again.annotations(), again.metadata()), written);
    assert_eq!(written.0["sealos.io.type"], "rootfs");
    assert_eq!(written.0["sealos.io.version"], "v1beta1");
    assert_eq!(written.0["sealos.io.distribution"], "kubernetes");
    assert_eq!(written.0["cluster.alpha.sealer.io/kube-cni-calico"], "true");
    // What is not known here stays.
    assert!(
        written.1["sealer.image.extension"].contains("launchfiles")
            && written.1["sealer.image.extension"].contains("buildClient")
    );
    assert!(written.2.contains("\"kept\": true"));
    // sealer reads no more than its own, and finds the same.
    let sealers = Description::read(&Words::new(), &written.1, Some(&written.2)).unwrap();
    assert_eq!((sealers.kind, &sealers.launch), (found.kind, &found.launch));
}

#[test]
fn a_document_that_is_none_is_named() {
    let annotations = words(&[("sealer.image.extension", "{")]);
    let error = Description::read(&Words::new(), &annotations, None).unwrap_err().to_string();
    assert!(error.starts_with("sealer.image.extension: "), "{error}");
    assert!(Description::read(&Words::new(), &Words::new(), Some("[]")).is_err());
    let nothing = words(&[("sealer.image.container.images", "null")]);
    assert_eq!(Description::read(&Words::new(), &nothing, None).unwrap().images, []);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[\"{}\\[\\]a:,0n ul]{0,60}", name in "[a-z.]{0,20}") {
        let annotations = words(&[("sealer.image.extension", &text), ("sealer.image.container.images", &text)]);
        if let Ok(found) = Description::read(&words(&[(&name, &text)]), &annotations, Some(&text)) {
            let _ = (found.labels(), found.annotations(), found.metadata());
        }
        let _ = Description::read(&Words::new(), &Words::new(), Some(&text));
    }
}
