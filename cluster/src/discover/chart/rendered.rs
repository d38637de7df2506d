//! What helm prints: `---`, `# Source: TEMPLATE`, and an object, again and again.

/// One object, and the template that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RenderedPart<'a> {
    /// The template: `CHART/templates/FILE`, `CHART/charts/SUB/templates/FILE`.
    pub(super) source: &'a str,
    /// The object's text.
    pub(super) text: &'a str,
}

const SOURCE: &str = "---\n# Source: ";

/// Splits helm's output.
pub(super) fn split(output: &str) -> Vec<RenderedPart<'_>> {
    let mut starts: Vec<usize> = output.match_indices(SOURCE).map(|(at, _)| at).collect();
    starts.retain(|at| *at == 0 || output.as_bytes()[at - 1] == b'\n');
    let ends = starts.iter().skip(1).copied().chain([output.len()]);
    let part = |(start, end): (&usize, usize)| {
        let part = &output[start + SOURCE.len()..end];
        let (source, text) = part.split_once('\n').unwrap_or((part, ""));
        RenderedPart { source: source.trim(), text }
    };
    starts.iter().zip(ends).map(part).collect()
}

/// The template and line that a message of helm's names: `web/templates/a.yaml:3`.
pub(super) fn locate<'a>(message: &'a str, chart: &str) -> Option<(&'a str, usize)> {
    let start = message.find(&format!("{chart}/"))?;
    let rest = &message[start..];
    let colon = rest.find(':')?;
    let digits = &rest[colon + 1..];
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    Some((&rest[..colon], digits[..end].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_knows_its_template() {
        let output = "---\n# Source: web/templates/a.yaml\na: 1\n---\n# Source: web/charts/b/templates/c.yaml\nb: |\n  ---\n";
        let expected = [
            RenderedPart { source: "web/templates/a.yaml", text: "a: 1\n" },
            RenderedPart { source: "web/charts/b/templates/c.yaml", text: "b: |\n  ---\n" },
        ];
        assert_eq!(split(output), expected);
        assert_eq!(split(""), []);
    }

    #[test]
    fn a_message_says_where() {
        let message =
            "template: web/templates/a.yaml:3:14: executing \"web/templates/a.yaml\" at <.Values.x>: nil";
        assert_eq!(locate(message, "web"), Some(("web/templates/a.yaml", 3)));
        assert_eq!(locate("nothing here", "web"), None);
    }
}
