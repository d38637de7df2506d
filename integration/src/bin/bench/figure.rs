//! Medians, ratios and goals.

use std::fmt::Write as _;

use serde::Serialize;

/// One measured figure and its peer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    group: &'static str,
    name: String,
    unit: &'static str,
    ours: f64,
    peer: f64,
    peer_name: String,
    /// Ours over the peer's.
    ratio: f64,
    /// The largest over the smallest run, of the side where that is larger.
    spread: f64,
    /// The ratio to reach.
    goal: f64,
    met: bool,
}

/// Runs of one side.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runs(Vec<f64>);

impl Runs {
    /// A single value that does not vary, such as a limit.
    pub(crate) fn fixed(value: f64) -> Self {
        Self(vec![value])
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle one; of an even number the middle of the middle two.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        }
    }

    fn spread(&self) -> f64 {
        let largest = self.0.iter().copied().fold(f64::MIN, f64::max);
        largest / self.0.iter().copied().fold(f64::MAX, f64::min)
    }
}

impl Figure {
    /// Compares medians; smaller is better.
    pub(crate) fn new(
        group: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        (ours, (peer_name, peer)): (&Runs, (&str, &Runs)),
        goal: f64,
    ) -> Self {
        let (own, other) = (ours.median(), peer.median());
        let ratio = own / other;
        Self {
            group,
            name: name.into(),
            unit,
            ours: own,
            peer: other,
            peer_name: peer_name.to_owned(),
            ratio,
            spread: ours.spread().max(peer.spread()),
            goal,
            met: ratio <= goal,
        }
    }

    pub(crate) fn is_met(&self) -> bool {
        self.met
    }
}

/// The figures as a table.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut text = format!(
        "{:<48}{:>10}{:>10}  {:<4}{:>7}{:>7}{:>8}  {:<5}{}\n",
        "figure", "ours", "peer", "unit", "ratio", "goal", "spread", "met", "peer"
    );
    for figure in figures {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<48}{:>10.3}{:>10.3}  {:<4}{:>7.3}{:>7.3}{:>8.2}  {:<5}{}",
            format!("{}: {}", figure.group, figure.name),
            figure.ours,
            figure.peer,
            figure.unit,
            figure.ratio,
            figure.goal,
            figure.spread,
            if figure.met { "yes" } else { "NO" },
            figure.peer_name
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(values: &[f64]) -> Runs {
        Runs(values.to_vec())
    }

    #[test]
    fn the_median_of_an_even_number_of_runs_is_the_middle_of_the_middle_two() {
        assert!((runs(&[4.0, 1.0, 3.0, 2.0]).median() - 2.5).abs() < 1e-9);
        assert!((runs(&[9.0, 1.0, 3.0]).median() - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_goal_is_met_by_the_ratio_of_medians() {
        let (ours, peer) = (runs(&[1.0, 1.0, 50.0]), runs(&[2.0, 2.0, 2.0]));
        let figure = Figure::new("main", "x", "s", (&ours, ("peer", &peer)), 0.5);
        assert!(figure.is_met() && (figure.spread - 50.0).abs() < 1e-9);
        assert!(!Figure::new("main", "x", "s", (&ours, ("peer", &peer)), 0.4).is_met());
    }
}
