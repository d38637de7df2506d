//! What tests make up of the words that a parser knows.

use proptest::prelude::*;
use serde_json::{Value, json};

/// Text of fewer than `most` parts, many of which mean something to a parser.
pub(crate) fn text(words: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
    let part = prop_oneof![prop::sample::select(words).prop_map(str::to_owned), "[a-z0-9]{1,4}"];
    prop::collection::vec(part, 0..most).prop_map(|parts| parts.concat())
}

/// JSON of any shape, with these texts and keys.
pub(crate) fn json(
    text: impl Strategy<Value = String> + 'static,
    keys: &'static [&'static str],
) -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        text.prop_map(Into::into),
        // The version of most documents.
        Just(json!(2)),
    ];
    let key = prop::sample::select(keys).prop_map(str::to_owned);
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::hash_map(key.clone(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
