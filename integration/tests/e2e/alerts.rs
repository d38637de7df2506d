//! The expressions that the documents give for alerts ask for what a node exports, by the names and labels that it has there.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use anyhow::{Context, Result, anyhow, ensure};
use integration::demo;
use integration::node::NodeOptions;
use promql_parser::label::MatchOp;
use promql_parser::parser::{self, AggregateExpr, BinaryExpr, Expr, LabelModifier, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use test_support::log::address_in;

use crate::fixture::Fixture;

const PAGE: &str = include_str!("../../../docs/node.md");

/// What a node exports: the values of each label of each metric.
type Exported = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

pub(crate) fn ask_for_what_is_exported(fixture: &Fixture) -> Result<()> {
    let expressions = expressions_of(PAGE);
    ensure!(expressions.len() >= 4, "few expressions were found in the page: {expressions:?}");
    let image = fixture.demo()?;
    let listen = "metrics_listen = \"127.0.0.1:0\"\n";
    let options = NodeOptions {
        snapshotter: listen.to_owned(),
        config: format!("[daemon]\n{listen}"),
        ..NodeOptions::default()
    };
    let mut node = fixture.new_node_with("alerts", options)?;
    node.cri().pull(&image.name)?;
    let daemon_log = node.daemon_log();
    let snapshotter_log = node.snapshotter()?.server().log_text();
    // The registry is a source, and has metrics, from the mount on.
    let _mounted = node.mount(&image.name, &fixture.subdir("alerts-tree")?)?;
    let mut exported = Exported::new();
    for log in [daemon_log, snapshotter_log] {
        let address = address_in(&log, "metrics are served").context("nobody says where metrics are")?;
        enter(&demo::ask_for(address, "/metrics")?, &mut exported)?;
    }
    let wrong: Vec<String> =
        expressions.iter().filter_map(|expression| check(expression, &exported).err()).collect();
    ensure!(wrong.is_empty(), "{}\nof what is exported: {exported:#?}", wrong.join("\n"));
    Ok(())
}

/// Those in the first column of the table of expressions.
fn expressions_of(page: &str) -> Vec<String> {
    let table = page.lines().skip_while(|line| !line.starts_with("| expression |")).skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    // A bar that is no border stands behind a backslash.
    rows.filter_map(|row| Some(row.split('`').nth(1)?.replace("\\|", "|"))).collect()
}

/// Enters what was scraped. Each line begins with a selector of itself.
fn enter(metrics: &str, exported: &mut Exported) -> Result<()> {
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').with_context(|| format!("no value: {line}"))?;
        let parsed = parser::parse(series).map_err(|error| anyhow!("{series}: {error}"))?;
        let Expr::VectorSelector(VectorSelector { name: Some(name), matchers, .. }) = parsed else {
            return Err(anyhow!("{series} is no series"));
        };
        let labels = exported.entry(name).or_default();
        for label in matchers.matchers {
            labels.entry(label.name).or_default().insert(label.value);
        }
    }
    Ok(())
}

/// What an expression asks for.
#[derive(Default)]
struct Asked {
    selectors: Vec<VectorSelector>,
    /// Labels that it groups by or joins on.
    labels: BTreeSet<String>,
}

impl ExprVisitor for Asked {
    type Error = Infallible;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, Infallible> {
        let modifier = match expression {
            Expr::VectorSelector(selector) => {
                self.selectors.push(selector.clone());
                None
            }
            Expr::MatrixSelector(matrix) => {
                self.selectors.push(matrix.vs.clone());
                None
            }
            Expr::Aggregate(AggregateExpr { modifier, .. }) => modifier.as_ref(),
            Expr::Binary(BinaryExpr { modifier, .. }) => {
                modifier.as_ref().and_then(|modifier| modifier.matching.as_ref())
            }
            _ => None,
        };
        if let Some(LabelModifier::Include(labels)) = modifier {
            self.labels.extend(labels.labels.iter().cloned());
        }
        Ok(true)
    }
}

/// Whether all that an expression asks for is exported, or what is not.
fn check(expression: &str, exported: &Exported) -> Result<(), String> {
    let wrong = |reason: String| format!("{expression}: {reason}");
    let parsed = parser::parse(expression).map_err(wrong)?;
    let mut asked = Asked::default();
    let Ok(_) = walk_expr(&mut asked, &parsed);
    if asked.selectors.is_empty() {
        return Err(wrong("it asks for nothing".to_owned()));
    }
    for selector in &asked.selectors {
        let name = selector.name.as_deref().unwrap_or_default();
        let labels = exported.get(name).ok_or_else(|| wrong(format!("there is no {name}")))?;
        if let Some(label) = asked.labels.iter().find(|label| !labels.contains_key(*label)) {
            return Err(wrong(format!("{name} has no label {label}")));
        }
        for matcher in &selector.matchers.matchers {
            let values = labels
                .get(&matcher.name)
                .ok_or_else(|| wrong(format!("{name} has no label {}", matcher.name)))?;
            // Those that are written out: a node exports all states and causes, at 0 too.
            let words = match matcher.op {
                MatchOp::Equal | MatchOp::NotEqual => vec![matcher.value.as_str()],
                MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').collect(),
            };
            if let Some(word) = words.into_iter().find(|word| !values.contains(*word)) {
                return Err(wrong(format!("{} of {name} is never {word}", matcher.name)));
            }
        }
    }
    Ok(())
}
