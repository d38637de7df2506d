//! Looking for a name among sorted ones that are where they are stored.

use std::cmp::Ordering;
use std::ops::Range;

use super::ReadError;

/// The number of the name in `among` that is `name`, or else that of the first one that is greater. `at` gives the name of a
/// number. Of names that are in no order it finds some or none, and ends.
///
/// # Errors
///
/// Those of `at`.
pub(super) fn search<'a>(
    among: Range<u64>,
    name: &[u8],
    at: impl Fn(u64) -> Result<&'a [u8], ReadError>,
) -> Result<Result<u64, u64>, ReadError> {
    let Range { start: mut low, end: mut high } = among;
    while low < high {
        let middle = low + (high - low) / 2;
        match at(middle)?.cmp(name) {
            Ordering::Greater => high = middle,
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Less => low = middle + 1,
        }
    }
    Ok(Err(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_or_where_it_would_be() {
        let names: [&[u8]; 4] = [b"-x", b".", b"..", b"a"];
        let find = |range, name: &[u8]| search(range, name, |number| Ok(names[number as usize])).unwrap();
        for (number, name) in names.iter().enumerate() {
            assert_eq!(find(0..4, name), Ok(number as u64));
        }
        assert_eq!((find(0..4, b"!"), find(0..4, b"0"), find(0..4, b"b")), (Err(0), Err(3), Err(4)));
        assert_eq!((find(1..4, b"-x"), find(2..2, b"a")), (Err(1), Err(2)));
    }
}
