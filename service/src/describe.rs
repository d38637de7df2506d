//! Errors as text for people who see nothing but that text.

use std::error::Error;

/// An error and what caused it, down to the root; a cause that the text before it already tells is left out.
pub fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_cause_is_told_once() {
        assert_eq!(describe(&Outer(std::io::Error::other("inner"))), "outer: inner");
        assert_eq!(describe(&Outer(std::io::Error::other("outer"))), "outer");
    }
}
