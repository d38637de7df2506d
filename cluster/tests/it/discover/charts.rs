//! Charts, rendered by the real helm.

use cluster::discover::Options;
use test_support::helm;

use super::tree::{discover, images, problems, tgz, tree, write};

fn options() -> Option<Options> {
    Some(Options { helm: Some(helm()?), ..Options::default() })
}

const CHART: &str = "apiVersion: v2\nname: web\nversion: 1.0.0\n";
const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  template:
    spec:
      containers:
      - image: \"{{ .Values.image }}:{{ .Values.tag | default .Chart.AppVersion }}\"
";

#[tokio::test]
async fn folders_and_archives_are_rendered_with_their_values() {
    let Some(options) = options() else { return };
    let dir = tree(&[
        ("charts/group/web/Chart.yaml", CHART),
        ("charts/group/web/values.yaml", "image: default\ntag: v1\n"),
        ("charts/group/web/templates/deploy.yaml", DEPLOYMENT),
        ("charts/group/web.values.yaml", "image: overlay\n"),
        ("charts/group/web.values.large.yaml", "tag: large\n"),
        ("charts/group/other.values.yaml", "image: not-mine\n"),
        ("charts/values.yaml", "image: {repository: no, tag: object}\n"),
    ]);
    let packed = tgz(
        "db",
        &[
            ("Chart.yaml", b"apiVersion: v2\nname: db\nversion: 1.0.0\nappVersion: '9'\n"),
            ("values.yaml", b"image: q.io/db\n"),
            ("templates/deploy.yaml", DEPLOYMENT.as_bytes()),
        ],
    );
    write(dir.path(), "charts/db-1.0.0.tgz", &packed);
    let found = discover(&dir, options).await;
    assert_eq!(problems(&found), Vec::<String>::new());
    let expected = [
        "docker.io/library/overlay:large charts/group/web/templates/deploy.yaml:8 (as rendered) (with charts/group/web.values.large.yaml)",
        "docker.io/library/overlay:v1 charts/group/web/templates/deploy.yaml:8 (as rendered)",
        "q.io/db:9 charts/db-1.0.0.tgz/templates/deploy.yaml:8 (as rendered)",
    ];
    assert_eq!(images(&found), expected);
}

#[tokio::test]
async fn values_of_this_machine_are_a_rendering_more() {
    let Some(mut options) = options() else { return };
    let dir = tree(&[
        ("charts/web/Chart.yaml", CHART),
        ("charts/web/values.yaml", "image: a\ntag: v1\n"),
        ("charts/web/templates/deploy.yaml", DEPLOYMENT),
        ("mine.yaml", "tag: mine\n"),
    ]);
    options.values = vec![("web".to_owned(), dir.path().join("mine.yaml"))];
    let found = discover(&dir, options.clone()).await;
    let names: Vec<_> = found.images.iter().map(|image| image.reference.to_string()).collect();
    assert_eq!(names, ["docker.io/library/a:mine", "docker.io/library/a:v1"]);
    options.values = vec![("absent".to_owned(), dir.path().join("mine.yaml"))];
    let error = cluster::discover::discover(dir.path(), &options).await.unwrap_err().to_string();
    assert!(error.contains("absent"), "{error}");
}

#[tokio::test]
async fn dependencies_are_part_of_a_chart_wherever_they_lie() {
    let Some(options) = options() else { return };
    let chart = |name: &str, more: &str| format!("apiVersion: v2\nname: {name}\nversion: 1.0.0\n{more}");
    let pod = |image: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: x}}\nspec: {{containers: [{{image: {image}}}]}}\n"
        )
    };
    let dir = tree(&[
        (
            "charts/top/Chart.yaml",
            &chart(
                "top",
                "dependencies:\n- {name: inner, version: 1.0.0, repository: ''}\n- {name: packed, version: 1.0.0, repository: ''}\n- {name: beside, version: 1.0.0, repository: 'file://../../shared/beside', alias: other}\n- {name: spare, version: 1.0.0, repository: '', condition: spare.enabled}\n",
            ),
        ),
        ("charts/top/values.yaml", "spare: {enabled: false}\nother: {image: from-alias}\n"),
        ("charts/top/templates/pod.yaml", &pod("top")),
        ("charts/top/charts/inner/Chart.yaml", &chart("inner", "")),
        ("charts/top/charts/inner/templates/pod.yaml", &pod("inner")),
        (
            "charts/top/charts/spare/Chart.yaml",
            &chart("spare", "annotations:\n  helm.sh/images: |\n    - image: spare-named\n"),
        ),
        ("charts/top/charts/spare/templates/pod.yaml", &pod("spare")),
        ("shared/beside/Chart.yaml", &chart("beside", "")),
        ("shared/beside/templates/pod.yaml", &pod("'{{ .Values.image }}'")),
    ]);
    let packed = tgz(
        "packed",
        &[
            (
                "Chart.yaml",
                chart("packed", "annotations:\n  helm.sh/images: |\n    - image: packed-named\n").as_bytes(),
            ),
            ("templates/pod.yaml", pod("packed").as_bytes()),
        ],
    );
    write(dir.path(), "charts/top/charts/packed-1.0.0.tgz", &packed);
    let found = discover(&dir, options).await;
    assert_eq!(problems(&found), Vec::<String>::new());
    let expected = [
        "docker.io/library/from-alias:latest charts/top/charts/other/templates/pod.yaml:4 (as rendered)",
        "docker.io/library/inner:latest charts/top/charts/inner/templates/pod.yaml:4 (as rendered)",
        "docker.io/library/packed-named:latest charts/top/charts/packed-1.0.0.tgz/Chart.yaml:6",
        "docker.io/library/packed:latest charts/top/charts/packed/templates/pod.yaml:4 (as rendered)",
        "docker.io/library/top:latest charts/top/templates/pod.yaml:4 (as rendered)",
    ];
    assert_eq!(images(&found), expected);
}

#[tokio::test]
async fn dependencies_beyond_the_tree_or_the_net_are_errors() {
    let Some(options) = options() else { return };
    let outside = tree(&[("Chart.yaml", "apiVersion: v2\nname: secret\nversion: 1.0.0\n")]);
    let dependency = |repository: &str| {
        format!("{CHART}dependencies:\n- {{name: secret, version: 1.0.0, repository: '{repository}'}}\n")
    };
    for (repository, words) in [
        ("file://../../../outside", "leads out of the tree"),
        (&format!("file://{}", outside.path().display()), "leads out of the tree"),
        ("file://../absent", "there is no chart in charts/absent"),
        ("https://charts.example", "missing in charts/ directory: secret"),
    ] {
        let dir = tree(&[("charts/web/Chart.yaml", &dependency(repository))]);
        let found = discover(&dir, options.clone()).await;
        let problems = problems(&found);
        assert!(problems.iter().any(|problem| problem.contains(words)), "{repository}: {problems:?}");
    }
}

#[tokio::test]
async fn annotations_name_images_and_conditions_hold_or_not() {
    let Some(options) = options() else { return };
    let chart = format!(
        "{CHART}annotations:\n  helm.sh/images: |\n    - name: a\n      image: q.io/operand:1\n    - image: q.io/on:1\n      condition: extra.enabled\n    - image: q.io/off:1\n      condition: spare.enabled\n"
    );
    let dir = tree(&[
        ("charts/web/Chart.yaml", &chart),
        ("charts/web/values.yaml", "extra: {enabled: false}\nspare: {enabled: false}\n"),
        ("charts/web.values.yaml", "extra: {enabled: true}\n"),
    ]);
    let found = discover(&dir, options).await;
    assert_eq!(problems(&found), Vec::<String>::new());
    assert_eq!(
        images(&found),
        ["q.io/on:1 charts/web/Chart.yaml:8", "q.io/operand:1 charts/web/Chart.yaml:6"]
    );
}

#[tokio::test]
async fn hooks_count_and_test_hooks_do_not() {
    let Some(options) = options() else { return };
    let hook = |name: &str, hook: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations: {{helm.sh/hook: '{hook}'}}\nspec: {{containers: [{{image: {name}}}]}}\n"
        )
    };
    let dir = tree(&[
        ("charts/web/Chart.yaml", CHART),
        ("charts/web/templates/install.yaml", &hook("install", "pre-install")),
        ("charts/web/templates/both.yaml", &hook("both", "test,post-install")),
        ("charts/web/templates/tests/test.yaml", &hook("tested", "test")),
        ("charts/web/templates/old.yaml", &hook("old", "test-success,test-failure")),
    ]);
    let found = discover(&dir, options).await;
    let names: Vec<_> = found.images.iter().map(|image| image.reference.repository().name()).collect();
    assert_eq!(names, ["library/both", "library/install"]);
}

#[tokio::test]
async fn a_chart_that_fails_says_where_and_hides_no_other() {
    let Some(options) = options() else { return };
    let dir = tree(&[
        ("charts/bad/Chart.yaml", "apiVersion: v2\nname: bad\nversion: 1.0.0\n"),
        ("charts/bad/templates/a.yaml", "a: 1\nb: {{ fail \"no such thing\" }}\n"),
        ("charts/nameless/Chart.yaml", "version: 1.0.0\n"),
        ("charts/library/Chart.yaml", "apiVersion: v2\nname: library\ntype: library\nversion: 1.0.0\n"),
        ("charts/web/Chart.yaml", CHART),
        ("charts/web/values.yaml", "image: a\ntag: v1\n"),
        ("charts/web/templates/deploy.yaml", DEPLOYMENT),
    ]);
    write(dir.path(), "charts/broken.tgz", b"no gzip");
    let found = discover(&dir, options).await;
    let problems = problems(&found);
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(
        problems[0].starts_with("charts/bad/templates/a.yaml:2: ") && problems[0].contains("no such thing")
    );
    assert!(problems[1].starts_with("charts/broken.tgz: no chart"), "{problems:?}");
    assert!(problems[2].starts_with("charts/nameless/Chart.yaml:1: "), "{problems:?}");
    assert_eq!(found.images.len(), 1);
}

#[tokio::test]
async fn templates_in_a_chart_are_rendered_first_and_links_lead_nowhere_else() {
    let Some(mut options) = options() else { return };
    options.environment.insert("Tag".to_owned(), "from-env".to_owned());
    let outside =
        tree(&[("secret.yaml", "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: secret}]}\n")]);
    let dir = tree(&[
        ("charts/web/Chart.yaml", CHART),
        ("charts/web/values.yaml.tmpl", "image: a\ntag: {{ .Tag }}\n"),
        ("charts/web/templates/deploy.yaml", DEPLOYMENT),
        ("charts/web.values.yaml.tmpl", "image: overlay-{{ .Tag }}\n"),
    ]);
    std::os::unix::fs::symlink(
        outside.path().join("secret.yaml"),
        dir.path().join("charts/web/templates/x.yaml"),
    )
    .unwrap();
    let found = discover(&dir, options).await;
    assert_eq!(problems(&found), Vec::<String>::new());
    let names: Vec<_> = found.images.iter().map(|image| image.reference.to_string()).collect();
    assert_eq!(names, ["docker.io/library/overlay-from-env:from-env"]);
}

#[tokio::test]
async fn definitions_that_a_chart_brings_are_looked_through() {
    let Some(options) = options() else { return };
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: x}\nspec: {template: {spec: {containers: [{image: NAME}]}}}\n";
    let dir = tree(&[
        ("charts/web/Chart.yaml", CHART),
        ("charts/web/crds/all.yaml", &job.replace("NAME", "upgrade:1")),
        ("charts/web/charts/sub/Chart.yaml", "apiVersion: v2\nname: sub\nversion: 1.0.0\n"),
        ("charts/web/charts/sub/crds/all.yaml", &job.replace("NAME", "sub:1")),
    ]);
    let found = discover(&dir, options).await;
    assert_eq!(problems(&found), Vec::<String>::new());
    let names: Vec<_> = found.images.iter().map(|image| image.reference.to_string()).collect();
    assert_eq!(names, ["docker.io/library/sub:1", "docker.io/library/upgrade:1"]);
}
