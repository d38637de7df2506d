//! Templates, rendered with the environment of the image.

use std::collections::BTreeMap;

use cluster::discover::Options;
use test_support::helm;

use super::tree::{discover, images, problems, tree, write};

fn options() -> Option<Options> {
    let environment = [("Registry", "r.example:5000"), ("Tag", "v7"), ("Debug", "")];
    let environment: BTreeMap<_, _> =
        environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Some(Options { environment, helm: Some(helm()?), ..Options::default() })
}

#[tokio::test]
async fn the_environment_decides() {
    let Some(options) = options() else { return };
    let text = r#"{{- define "tag" }}{{ .Tag | upper | lower }}{{ end -}}
apiVersion: v1
kind: Pod
spec:
  containers:
  - image: {{ .Registry }}/web:{{ include "tag" . }}
{{- if .Debug }}
  - image: {{ $.Registry }}/debugger:1
{{- end }}
  - image: "{{ default "none" .Absent }}/x<y"
"#;
    let dir = tree(&[
        ("manifests/web.yaml.tmpl", &text.replace("\n  - image: \"{{ default \"none\" .Absent }}/x<y\"", "")),
        // Overwritten on the node by what the template renders to.
        ("manifests/web.yaml", "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: stale:1}]}\n"),
        ("manifests/no-manifest.sh.tmpl", "image: {{ broken"),
        (
            "manifests/bare.tmpl",
            "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: 'bare:{{ .Tag }}'}]}\n",
        ),
    ]);
    let found = discover(&dir, options).await;
    assert_eq!(problems(&found), Vec::<String>::new());
    let expected = [
        "docker.io/library/bare:v7 manifests/bare.tmpl:3 (as rendered)",
        "r.example:5000/web:v7 manifests/web.yaml.tmpl:5 (as rendered)",
    ];
    assert_eq!(images(&found), expected);
}

#[tokio::test]
async fn a_template_that_fails_is_named_and_hides_no_other() {
    let Some(options) = options() else { return };
    let dir = tree(&[
        ("manifests/bad.yaml.tmpl", "a: 1\nb: {{ .Tag | nosuchfunction }}\n"),
        (
            "manifests/good.yaml.tmpl",
            "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: 'a:{{ .Tag }}'}]}\n",
        ),
        (
            "manifests/missing.yaml.tmpl",
            "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: 'a:{{ .Missing }}'}]}\n",
        ),
    ]);
    let found = discover(&dir, options).await;
    assert_eq!(images(&found), ["docker.io/library/a:v7 manifests/good.yaml.tmpl:3 (as rendered)"]);
    let problems = problems(&found);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].starts_with("manifests/bad.yaml.tmpl:2: ") && problems[0].contains("nosuchfunction"),
        "{problems:?}"
    );
    assert!(problems[1].starts_with("manifests/missing.yaml.tmpl:3: "), "{problems:?}");
}

#[tokio::test]
async fn a_template_of_a_chart_that_is_no_text_is_named() {
    let Some(options) = options() else { return };
    let dir = tree(&[("charts/web/Chart.yaml", "apiVersion: v2\nname: web\nversion: 1.0.0\n")]);
    write(dir.path(), "charts/web/templates/web.yaml.tmpl", b"kind: Pod\xff\n");
    write(dir.path(), "charts/web.values.yaml.tmpl", b"kind: Pod\xff\n");
    let problems = problems(&discover(&dir, options).await);
    let expected = |file: &str| format!("{file}: it is no text in UTF-8: byte 9 is not");
    assert_eq!(
        problems,
        [expected("charts/web.values.yaml.tmpl"), expected("charts/web/templates/web.yaml.tmpl")]
    );
}

#[tokio::test]
async fn without_helm_every_template_and_chart_is_named() {
    let dir = tree(&[
        ("manifests/a.yaml.tmpl", "a: 1\n"),
        ("charts/web/Chart.yaml", "apiVersion: v2\nname: web\nversion: 1.0.0\n"),
        ("imageList", "a\n"),
    ]);
    let options = Options { helm: Some("/nowhere/helm".into()), ..Options::default() };
    let found = discover(&dir, options).await;
    let problems = problems(&found);
    assert!(problems[0].starts_with("charts/web: helm is needed"), "{problems:?}");
    assert!(problems[1].starts_with("manifests/a.yaml.tmpl: helm is needed"), "{problems:?}");
    assert_eq!(images(&found), ["docker.io/library/a:latest imageList:1"]);
}
