//! Finding the images of a chart, compared with helm that only renders it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::peers::{self, Peers};
use serde_json::Value;

use super::GROUP;
use crate::figure::{Figure, Runs};
use crate::run::run;

const TEMPLATES: usize = 50;
const DEPENDENCIES: usize = 10;
const TEMPLATES_OF_A_DEPENDENCY: usize = 3;
const OF_HELM: f64 = 1.2;

/// Measures it.
pub(super) fn measure(peers: &Peers, dir: &Path, runs: u16) -> Result<Figure> {
    let chart = dir.join("charts/big");
    write_chart(&chart, "big", TEMPLATES, DEPENDENCIES)?;
    for number in 0..DEPENDENCIES {
        let name = format!("part{number}");
        write_chart(&chart.join("charts").join(&name), &name, TEMPLATES_OF_A_DEPENDENCY, 0)?;
    }
    let config = dir.join("config.toml");
    fs::write(&config, "")?;
    let (mut ours, mut theirs) = (Runs::default(), Runs::default());
    // The first time, files and programs are read from the disk.
    for number in 0..=runs {
        let mut images = Command::new(peers::nydus_cluster()?);
        images.arg("--config").arg(&config).args(["cluster", "images"]).arg(dir);
        let found = run(images.arg("--json").arg("--helm").arg(peers.helm()?))?;
        expect_all(&found.stdout)?;
        let rendered = run(Command::new(peers.helm()?).args(["template", "big"]).arg(&chart))?;
        eprintln!("{:8.3} s (helm {:.3} s)  images of a chart", found.seconds, rendered.seconds);
        if number > 0 {
            ours.push(found.seconds);
            theirs.push(rendered.seconds);
        }
    }
    let name = format!("images of a chart, {TEMPLATES} templates");
    Ok(Figure::new(GROUP, name, "s", (&ours, ("helm template alone", &theirs)), OF_HELM))
}

/// Fails unless each template's image was found.
fn expect_all(found: &str) -> Result<()> {
    let found: Value = serde_json::from_str(found)?;
    let count = found["images"].as_array().context("no images in the answer")?.len();
    let expected = TEMPLATES + DEPENDENCIES * TEMPLATES_OF_A_DEPENDENCY;
    ensure!(count == expected, "{count} images were found in the chart: expected {expected}");
    Ok(())
}

/// Writes a chart whose templates are Deployments with an image each.
fn write_chart(dir: &Path, name: &str, templates: usize, dependencies: usize) -> Result<()> {
    fs::create_dir_all(dir.join("templates")).with_context(|| format!("creating {}", dir.display()))?;
    let mut chart = format!("apiVersion: v2\nname: {name}\nversion: 1.0.0\n");
    if dependencies > 0 {
        chart += "dependencies:\n";
    }
    for number in 0..dependencies {
        // Writing to a string cannot fail.
        let _ = writeln!(chart, "  - {{name: part{number}, version: 1.0.0}}");
    }
    fs::write(dir.join("Chart.yaml"), chart)?;
    fs::write(
        dir.join("values.yaml"),
        "registry: registry.example\nreplicas: 2\nlabels: {team: a, stage: test}\n",
    )?;
    for number in 0..templates {
        fs::write(dir.join(format!("templates/app{number}.yaml")), template(name, number))?;
    }
    Ok(())
}

fn template(chart: &str, number: usize) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{{{ .Release.Name }}}}-{chart}-{number}
  labels: {{{{- toYaml .Values.labels | nindent 4 }}}}
spec:
  replicas: {{{{ .Values.replicas }}}}
  selector: {{matchLabels: {{app: {chart}-{number}}}}}
  template:
    metadata: {{labels: {{app: {chart}-{number}}}}}
    spec:
      containers:
        - name: app
          image: {{{{ .Values.registry }}}}/{chart}/app{number}:{{{{ .Chart.Version }}}}
          resources: {{requests: {{cpu: 100m, memory: 64Mi}}, limits: {{memory: 128Mi}}}}
          readinessProbe: {{httpGet: {{path: /ready, port: 8080}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {{{{ .Release.Name }}}}-{chart}-{number}}}
spec:
  selector: {{app: {chart}-{number}}}
  ports: [{{port: 80, targetPort: 8080}}]
"
    )
}
