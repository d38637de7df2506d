//! Positions, aliases, merges, and texts that mean harm.

use proptest::prelude::*;

use super::*;

fn one(text: &str) -> Document {
    let mut parsed = parse(text);
    assert_eq!(parsed.errors, [], "{text}");
    assert_eq!(parsed.documents.len(), 1, "{text}");
    parsed.documents.remove(0)
}

#[test]
fn values_know_their_lines() {
    let document = one("# a comment\na:\n  - b: 1\n    c: \"two\"\n  - |\n    text\n");
    let list = document.root().get("a").unwrap();
    let items: Vec<_> = list.items().collect();
    assert_eq!((items[0].get("c").unwrap().text(), items[0].get("c").unwrap().line()), (Some("two"), 4));
    assert_eq!((items[1].text(), items[1].line()), (Some("text\n"), 6));
}

#[test]
fn only_strings_are_strings() {
    for (text, string) in [
        ("a: 1", false),
        ("a: 1.5e3", false),
        ("a: true", false),
        ("a: ~", false),
        ("a:", false),
        ("a: '1'", true),
        ("a: !!str 1", true),
        ("a: nginx:1.2", true),
        ("a: infinity", true),
    ] {
        assert_eq!(one(text).root().get("a").unwrap().string().is_some(), string, "{text}");
    }
}

#[test]
fn merges_are_followed_and_own_keys_win() {
    let document = one("x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz: {<<: [*x, *y], c: 5}\n");
    let z = document.root().get("z").unwrap();
    assert_eq!(z.get("a").unwrap().text(), Some("1"));
    assert_eq!(z.get("b").unwrap().text(), Some("2"));
    assert_eq!(z.get("c").unwrap().text(), Some("5"));
    assert!(z.get("d").is_none());
}

#[test]
fn a_broken_document_does_not_hide_the_others() {
    let parsed = parse("a: 1\n---\nb: [1\nc: 2\n---\nd: 3\n");
    assert_eq!(parsed.errors.len(), 1);
    let keys: Vec<_> = parsed.documents.iter().map(|d| d.root().entries().next().unwrap().0.text()).collect();
    assert_eq!(keys, [Some("a"), Some("d")]);
}

#[test]
fn aliases_of_aliases_cost_no_more_than_their_text() {
    let mut text = "l0: &l0 [a, b]\n".to_owned();
    for level in 1..60 {
        let before = level - 1;
        text += &format!("l{level}: &l{level} [*l{before}, *l{before}, *l{before}]\n");
        text += &format!("m{level}: &m{level} {{<<: [*m{before}, *m{before}]}}\n").replace("m0", "l0");
    }
    let document = one(&text);
    assert!(document.nodes.len() < 600, "{}", document.nodes.len());
    assert!(document.root().get("m59").unwrap().get("absent").is_none());
}

#[test]
fn a_value_is_not_within_itself() {
    let parsed = parse("a: &a [1, *a]\n---\nb: 1\n");
    assert_eq!(parsed.errors.len(), 1);
    assert_eq!(parsed.documents.len(), 1);
}

#[test]
fn nesting_has_a_limit() {
    assert_eq!(parse(&"[".repeat(100_000)).errors.len(), 1);
    let deep: String = (0..2000).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    assert_eq!(parse(&deep).errors.len(), 1);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in r#"[-a-c:&*<> \n\[\]{}!|'"%#?,\t0-2]{0,200}"#) {
        for document in parse(&text).documents {
            let mut todo = vec![document.root()];
            let mut seen = std::collections::HashSet::new();
            while let Some(value) = todo.pop() {
                if seen.insert(value.id()) {
                    let _ = (value.get("a"), value.string(), value.is_null());
                    todo.extend(value.items().chain(value.entries().flat_map(|(key, value)| [key, value])));
                }
            }
        }
    }
}
