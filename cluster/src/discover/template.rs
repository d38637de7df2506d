//! Go templates, rendered as helm renders them.
//!
//! sealer and sealos render `.tmpl` files on the node, with the image's environment as `.`: the same language and functions as in
//! charts. All templates of a tree become one chart: each is a helper that is included with the environment, and its result
//! comes back as a JSON string, so that helm need not understand what it is.

use std::collections::BTreeMap;

use crate::helm::{Files, Helm, HelmError, Rendering};

/// The name of the chart that is made; helm puts it before the names of templates in its messages.
const CHART: &str = "image";

/// A text to render: its file, as a path in the tree.
pub(crate) type Templates = BTreeMap<String, String>;

/// Why one template was not rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplateError {
    /// The line, from 1, where it is known.
    pub(crate) line: Option<usize>,
    /// What is wrong.
    pub(crate) reason: String,
}

/// Renders all of `templates`, each for itself if one of them keeps the others from it.
pub(crate) async fn render(
    helm: &Helm,
    templates: &Templates,
    environment: &BTreeMap<String, String>,
) -> BTreeMap<String, Result<String, TemplateError>> {
    if templates.is_empty() {
        return BTreeMap::new();
    }
    match together(helm, templates, environment).await {
        Ok(rendered) => rendered.into_iter().map(|(file, text)| (file, Ok(text))).collect(),
        Err(HelmError::Failed(_)) if templates.len() > 1 => {
            let mut rendered = BTreeMap::new();
            for (file, text) in templates {
                let alone = Templates::from([(file.clone(), text.clone())]);
                let result = together(helm, &alone, environment).await;
                let result = result.map(|mut rendered| rendered.remove(file).unwrap_or_default());
                rendered.insert(file.clone(), result.map_err(|error| explain(&error)));
            }
            rendered
        }
        Err(error) => templates.keys().map(|file| (file.clone(), Err(explain(&error)))).collect(),
    }
}

async fn together(
    helm: &Helm,
    templates: &Templates,
    environment: &BTreeMap<String, String>,
) -> Result<Templates, HelmError> {
    let mut chart = Files::new();
    chart.insert("Chart.yaml".to_owned(), format!("apiVersion: v2\nname: {CHART}\nversion: 0.0.0\n").into());
    for (index, text) in templates.values().enumerate() {
        chart.insert(format!("templates/_{index}.tpl"), text.clone().into());
        let include = format!("include \"{CHART}/templates/_{index}.tpl\" .Values | toJson");
        let object = format!("apiVersion: v1\nkind: ConfigMap\ntext: {{{{ {include} }}}}\n");
        chart.insert(format!("templates/{index}.yaml"), object.into());
    }
    let values = serde_json::to_vec(environment).map_err(|error| HelmError::Io(error.to_string()))?;
    let rendering = Rendering { chart: &chart, release: CHART, values: vec![&values], kube_version: None };
    helm.render(&rendering, |output| split(templates, output)).await?
}

/// What became of each of `templates` in what helm printed.
fn split(templates: &Templates, output: &str) -> Result<Templates, HelmError> {
    let mut rendered = Templates::new();
    for (index, file) in templates.keys().enumerate() {
        let start = format!("# Source: {CHART}/templates/{index}.yaml\n");
        let text = output.split_once(&start).and_then(|(_, rest)| rest.split_once("\ntext: "));
        let text = text.and_then(|(_, text)| serde_json::from_str(text.lines().next()?).ok());
        let missing = || HelmError::Failed(format!("helm printed nothing for {file}"));
        rendered.insert(file.clone(), text.ok_or_else(missing)?);
    }
    Ok(rendered)
}

/// What helm says of a template that is alone, without the name that it has there.
fn explain(error: &HelmError) -> TemplateError {
    let text = error.to_string();
    let name = format!("{CHART}/templates/_0.tpl");
    let line = text.rsplit_once(&format!("{name}:")).and_then(|(_, rest)| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().ok()
    });
    TemplateError { line, reason: text.replace(&name, "the template") }
}
