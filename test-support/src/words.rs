//! Words that readers whose first language is not English stumble over.

/// Each with what is said instead.
const HARD_WORDS: [(&str, &str); 13] = [
    ("beside", "next to"),
    ("besides", "in addition, too"),
    ("beneath", "below"),
    ("anew", "again"),
    ("be had", "be there, be read, be fetched"),
    ("its kin", "and the like"),
    ("in vain", "without"),
    ("but for", "except for"),
    ("for want of", "without"),
    ("upon", "on"),
    ("hence", "so"),
    ("thereof", "of it"),
    ("wherefrom", "from where"),
];

/// The hard words of a text, and what to write instead of each.
pub fn hard_words(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let is_letter = |letter: char| letter.is_alphanumeric() || letter == '_';
    let is_there = |word: &str| {
        text.match_indices(word).any(|(at, _)| {
            !text[..at].ends_with(is_letter) && !text[at + word.len()..].starts_with(is_letter)
        })
    };
    let found = HARD_WORDS.into_iter().filter(|(word, _)| is_there(word));
    found.map(|(word, instead)| format!("{word:?}; write {instead:?}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_whole() {
        assert_eq!(hard_words("Beside it, nothing."), [r#""beside"; write "next to""#]);
        assert_eq!(hard_words("nydus_beside_plain; canew; beneath_it"), [""; 0]);
        assert_eq!(hard_words("not to be had besides").len(), 2);
    }
}
