//! Values that are alike in several words. What is wrong with one is said as what was expected.

/// A boolean as Go's `strconv.ParseBool`, which BuildKit uses, takes it; an empty value is true as in BuildKit.
///
/// # Errors
///
/// When it is none; it says what was expected.
pub fn boolean(value: &str) -> Result<bool, String> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// A size in bytes: a number, hexadecimal with 0x before it, or with K or M (powers of 1024) behind it.
pub(super) fn size(text: &str) -> Option<u32> {
    let lower = text.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0x") {
        return u32::from_str_radix(hex, 16).ok();
    }
    let (digits, factor) = [("kib", 1 << 10), ("mib", 1 << 20), ("k", 1 << 10), ("m", 1 << 20)]
        .into_iter()
        .find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, factor)))
        .unwrap_or((&lower, 1));
    digits.parse().ok().and_then(|number: u32| number.checked_mul(factor))
}

/// The parts of a list: separated by commas that are neither within braces nor behind a backslash.
pub(super) fn parts(list: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut depth, mut escaped) = (Vec::new(), 0, 0_usize, false);
    for (at, character) in list.char_indices() {
        match character {
            _ if escaped => {}
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&list[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
        escaped = character == '\\' && !escaped;
    }
    parts.push(&list[begin..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_or_not() {
        for text in ["1048576", "0x100000", "1024K", "1M", "1MiB"] {
            assert_eq!(size(text), Some(1 << 20), "{text}");
        }
        for text in ["", "1G", "M", "-1", "5000M", "0x"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn a_comma_in_braces_or_behind_a_backslash_ends_no_part() {
        assert_eq!(parts("/a, /b/{c,d}/*,/e\\,f,,"), ["/a", "/b/{c,d}/*", "/e\\,f"]);
        assert_eq!(parts("/a\\\\,/b}"), ["/a\\\\", "/b}"]);
        assert!(parts("").is_empty());
    }
}
