//! helm's bounds, with programs in its place: what it sees, may do, and how it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use test_support::{Need, needs, write_program};

use super::*;

fn chart() -> Files {
    Files::from([
        ("Chart.yaml".to_owned(), b"name: x".to_vec()),
        ("templates/a.yaml".to_owned(), b"a".to_vec()),
    ])
}

async fn run(script: &str, deadline: Duration) -> Result<String, HelmError> {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("helm");
    write_program(&program, format!("#!/bin/sh\n{script}\n").as_bytes());
    let chart = chart();
    let rendering =
        Rendering { chart: &chart, release: "x", values: vec![b"a: 1"], kube_version: Some("1.37.0") };
    Helm::new(Some(&program), deadline).render(&rendering, str::to_owned).await
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn it_gets_the_chart_the_values_and_an_environment_of_its_own() {
    let said =
        run("echo \"$@\"; cat $3/templates/a.yaml values-0.yaml; echo; env | sort", LONG).await.unwrap();
    let mut lines = said.lines();
    let words = lines.next().unwrap();
    assert!(words.starts_with("template x /"), "{words}");
    assert!(words.contains("--kube-version 1.37.0") && words.contains("--values /"), "{words}");
    assert_eq!(lines.next(), Some("aa: 1"));
    let names: Vec<_> = lines.filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    // PWD is the shell's own.
    assert_eq!(names, ["GOGC", "GOMEMLIMIT", "HELM_PLUGINS", "HOME", "PWD"]);
}

#[tokio::test]
async fn it_is_another_user_without_a_network() {
    needs!(Need::Root);
    let said =
        run("id -u; id -G; cat /proc/net/dev | tail -n +3; touch chart/x 2>/dev/null || echo refused", LONG);
    let said = said.await.unwrap();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..2], ["64911", "64911"], "{said}");
    let interfaces: Vec<_> = lines.iter().filter(|line| line.contains(':')).collect();
    assert!(interfaces.iter().all(|line| line.trim().starts_with("lo:")), "{said}");
    assert_eq!(lines.last(), Some(&"refused"), "{said}");
}

#[tokio::test]
async fn what_it_started_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let file = dir.path().join("pid");
    // The child keeps the pipe open, so nobody may wait for its end.
    let script = format!("sleep 600 & echo $! > {}; wait", file.display());
    // A busy machine may not have come that far by its end: then there is more time.
    let mut deadlines = [1500, 8000, 20_000].map(Duration::from_millis).into_iter();
    let pid: i32 = loop {
        let error = run(&script, deadlines.next().expect("it starts a child")).await.unwrap_err();
        assert!(matches!(error, HelmError::Deadline(_)), "{error}");
        if let Some(pid) = fs::read_to_string(&file).ok().and_then(|pid| pid.trim().parse().ok()) {
            break pid;
        }
    };
    let end = std::time::Instant::now() + LONG;
    let alive = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    while alive() {
        assert!(std::time::Instant::now() < end, "process {pid} lives");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn endless_output_and_files_are_cut_off() {
    let error = run("exec yes", LONG).await.unwrap_err();
    assert!(matches!(error, HelmError::TooLarge(_)), "{error}");
    let error = run("cd home && cat /dev/zero > file && echo never", LONG).await.unwrap_err();
    assert!(matches!(error, HelmError::Failed(_)), "{error}");
}

#[tokio::test]
async fn its_reason_is_kept_and_its_advice_is_not() {
    let script = "echo 'Error: template: x/templates/a.yaml:1:2: no' >&2\necho >&2\necho 'Use --debug flag to render out invalid YAML' >&2\nexit 1";
    assert_eq!(run(script, LONG).await.unwrap_err().to_string(), "template: x/templates/a.yaml:1:2: no");
}

#[tokio::test]
async fn an_absent_program_is_named() {
    let helm = Helm::new(Some(Path::new("/nowhere/helm")), LONG);
    let rendering = Rendering { chart: &chart(), release: "x", values: vec![], kube_version: None };
    let error = helm.render(&rendering, str::to_owned).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/helm"), "{error}");
}
