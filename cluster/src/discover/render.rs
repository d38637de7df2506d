//! What has to be rendered: first templates, as charts and their values may be some, then charts.

use std::collections::BTreeMap;
use std::thread::available_parallelism;

use futures::StreamExt as _;

use super::ask::{Requests, Way};
use super::chart::{Chart, Values};
use super::collect::Collected;
use super::manifest::{self, Context};
use super::rendered::TEMPLATE;
use super::template::{self, TemplateError, Templates};
use super::tree::Unreadable;
use super::{DiscoverError, Options};
use crate::helm::Helm;

/// Renders what the walk put aside, and adds what it asks for.
pub(crate) async fn render(
    helm: &Helm,
    options: &Options,
    collected: &mut Collected,
) -> Result<(), DiscoverError> {
    let mut charts = std::mem::take(&mut collected.charts);
    further_values(&mut charts, options)?;
    templates(helm, options, &mut charts, collected).await;
    let kube_version = options.kube_version.clone().or(collected.kube_version.clone());
    let jobs: Vec<_> = charts
        .iter()
        .flat_map(|chart| [None].into_iter().chain(chart.sets.iter().map(Some)).map(move |set| (chart, set)))
        .map(|(chart, set)| chart.requests(helm, set, kube_version.as_deref()))
        .collect();
    let parallel = available_parallelism().map_or(1, usize::from);
    let rendered: Vec<Requests> = futures::stream::iter(jobs).buffered(parallel).collect().await;
    rendered.into_iter().for_each(|requests| collected.requests.add(requests));
    manifest::kustomize::apply(&collected.kustomizations, &mut collected.requests);
    Ok(())
}

/// Adds the sets of values that options name to the charts of their names.
fn further_values(charts: &mut [Chart], options: &Options) -> Result<(), DiscoverError> {
    for (name, path) in &options.values {
        let content = std::fs::read(path).map_err(|error| DiscoverError::Values {
            chart: name.clone(),
            path: path.clone(),
            error,
        })?;
        let mut named = charts.iter_mut().filter(|chart| chart.metadata.name == *name).peekable();
        if named.peek().is_none() {
            let error = std::io::Error::other("there is no chart of this name");
            return Err(DiscoverError::Values { chart: name.clone(), path: path.clone(), error });
        }
        let values = Values { name: path.display().to_string(), content };
        named.for_each(|chart| chart.sets.push(values.clone()));
    }
    Ok(())
}

/// Renders all templates, reads those that are manifests, and gives charts those that are theirs.
async fn templates(helm: &Helm, options: &Options, charts: &mut [Chart], collected: &mut Collected) {
    let mut all = std::mem::take(&mut collected.templates);
    let manifests: Vec<String> = all.keys().cloned().collect();
    for chart in charts.iter_mut() {
        take_templates(chart, &mut all, &mut collected.requests);
    }
    let mut rendered = template::render(helm, &all, &options.environment).await;
    for file in manifests {
        match rendered.remove(&file) {
            Some(Ok(text)) => {
                let context = Context { file, way: Way::Template, values: None };
                collected.requests.add(manifest::read(&context, &text));
            }
            Some(Err(error)) => failed(&file, &error, &mut collected.requests),
            None => {}
        }
    }
    for chart in charts {
        give(chart, &rendered, &mut collected.requests);
    }
}

/// Gives a chart what became of its templates: values their content, files their name without `.tmpl`.
fn give(
    chart: &mut Chart,
    rendered: &BTreeMap<String, Result<String, TemplateError>>,
    requests: &mut Requests,
) {
    let folder = format!("{}/", chart.place);
    for (file, result) in rendered {
        let values = chart.overlay.iter_mut().chain(&mut chart.sets).find(|values| values.name == *file);
        let own = file.strip_prefix(&folder).and_then(|own| own.strip_suffix(TEMPLATE));
        match (result, values, own) {
            (Ok(text), Some(values), _) => values.content = text.clone().into_bytes(),
            (Ok(text), None, Some(own)) => {
                chart.files.insert(own.to_owned(), text.clone().into_bytes());
            }
            (_, None, None) => {}
            (Err(error), ..) => failed(file, error, requests),
        }
    }
}

fn failed(file: &str, error: &TemplateError, requests: &mut Requests) {
    requests.problem(file, error.line, &error.reason);
}

/// Takes the templates among a chart's files and values. One that is no text is a problem of its file.
fn take_templates(chart: &mut Chart, all: &mut Templates, requests: &mut Requests) {
    let mut take = |file: String, content: Vec<u8>| match String::from_utf8(content) {
        Ok(text) => _ = all.insert(file, text),
        Err(error) => requests.problem(file, None, Unreadable::NoText(error.utf8_error().valid_up_to())),
    };
    let names: Vec<String> = chart.files.keys().filter(|name| name.ends_with(TEMPLATE)).cloned().collect();
    for name in names {
        if let Some(content) = chart.files.remove(&name) {
            take(format!("{}/{name}", chart.place), content);
        }
    }
    for values in chart.overlay.iter_mut().chain(&mut chart.sets) {
        if !values.name.ends_with(TEMPLATE) {
            continue;
        }
        // They come back rendered. What cannot be is left empty: helm would name it once more.
        take(values.name.clone(), std::mem::take(&mut values.content));
    }
}
