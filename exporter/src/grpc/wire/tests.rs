//! Properties of splicing: what is not ours keeps its bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::field::put_bytes;
use super::{Fields, map, varint};

/// Any well-formed field: number, and the bytes after its tag.
fn any_field() -> impl Strategy<Value = Vec<u8>> {
    let number = 1u64..200;
    prop_oneof![
        (number.clone(), any::<u64>()).prop_map(|(number, value)| {
            let mut out = Vec::new();
            varint::encode(number << 3, &mut out);
            varint::encode(value, &mut out);
            out
        }),
        (number.clone(), vec(any::<u8>(), 0..40)).prop_map(|(number, value)| {
            let mut out = Vec::new();
            put_bytes(number, &value, &mut out);
            out
        }),
        (number.clone(), any::<[u8; 8]>()).prop_map(|(number, value)| {
            let mut out = Vec::new();
            varint::encode(number << 3 | 1, &mut out);
            out.extend_from_slice(&value);
            out
        }),
        (number, any::<[u8; 4]>()).prop_map(|(number, value)| {
            let mut out = Vec::new();
            varint::encode(number << 3 | 5, &mut out);
            out.extend_from_slice(&value);
            out
        }),
    ]
}

proptest! {
    #[test]
    fn a_varint_survives_encoding(value: u64) {
        let mut out = Vec::new();
        varint::encode(value, &mut out);
        prop_assert_eq!(varint::decode(&out), Some((value, out.len())));
        prop_assert_eq!(varint::decode(&out[..out.len() - 1]), None);
    }

    #[test]
    fn the_fields_of_a_message_are_its_bytes(fields in vec(any_field(), 0..20)) {
        let message = fields.concat();
        let walked: Vec<_> = Fields::of(&message).map(|field| field.unwrap().raw.to_vec()).collect();
        prop_assert_eq!(walked, fields);
    }

    #[test]
    fn any_bytes_are_fields_or_an_error_but_no_panic(bytes in vec(any::<u8>(), 0..200)) {
        for field in Fields::of(&bytes) {
            if field.is_err() {
                break;
            }
        }
    }

    #[test]
    fn setting_a_map_entry_keeps_all_other_fields(fields in vec(any_field(), 0..20), value in "[a-z]{0,9}") {
        const MAP: u64 = 1000;
        let mut message = fields.concat();
        map::put_entry(MAP, "other", "stays", &mut message);
        map::put_entry(MAP, "ours", "old", &mut message);
        let changed = map::set_entry(&message, MAP, "ours", &value).unwrap();
        prop_assert!(changed.starts_with(&fields.concat()));
        let entries = map::entries(&changed, MAP).unwrap();
        prop_assert_eq!(entries.len(), 2);
        prop_assert_eq!(entries["other"].as_str(), "stays");
        prop_assert_eq!(&entries["ours"], &value);
    }
}

#[test]
fn a_number_of_more_than_64_bits_is_refused() {
    assert_eq!(varint::decode(&[0xff; 10]), None);
    assert_eq!(
        varint::decode(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        Some((u64::MAX, 10))
    );
}

#[test]
fn a_field_that_claims_more_than_there_is_names_its_place() {
    let error = Fields::of(&[0x0a, 0xff, 0x01, 0x00]).next().unwrap().unwrap_err();
    assert_eq!((error.offset, error.length), (3, 4));
}
