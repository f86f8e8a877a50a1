//! Random damage: whatever is done to an archive, it is read or refused, never a panic.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixture::{ENCODER, MLP, edit_json, open};

/// Opens an archive and reads all that it lists, as a worker would.
fn exercise(bytes: &[u8]) {
    let Ok(mut archive) = open(bytes) else { return };
    let program = archive.program().clone();
    drop(comptoir_domain::program::meter::multiply_adds_per_row(
        &program,
    ));
    for tensor in program.tensors.values() {
        if let Ok(payload) = archive.payload(&tensor.payload) {
            assert!(
                payload.len() <= bytes.len(),
                "a stored file is never longer than its archive"
            );
        }
    }
}

/// The `at`th value of a document, counted through all levels.
fn nth<'a>(value: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, at)),
        Value::Object(fields) => fields.values_mut().find_map(|field| nth(field, at)),
        _ => None,
    }
}

fn junk() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!({"as_int": -1})),
        Just(json!({"as_tensor": {"name": "linear"}})),
        Just(json!({"as_expr": {"expr_str": "FloorDiv(Symbol('s77'), Integer(0))"}})),
        Just(json!({"as_expr": {"expr_str": "Pow(Integer(9), Pow(Integer(9), Integer(9)))"}})),
        "[a-z_.]{0,12}".prop_map(Value::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn damaged_bytes(places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut damaged = MLP.to_vec();
        for (at, byte) in places {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        exercise(&damaged);
    }

    #[test]
    fn a_damaged_directory(places in proptest::collection::vec((0_usize..1_300, any::<u8>()), 1..4)) {
        let mut damaged = MLP.to_vec();
        let length = damaged.len();
        for (back, byte) in places {
            damaged[length - 1 - back] = byte;
        }
        exercise(&damaged);
    }

    #[test]
    fn a_cut_archive(at in any::<prop::sample::Index>()) {
        exercise(&MLP[..at.index(MLP.len())]);
    }

    #[test]
    fn a_damaged_graph(at in 0_usize..6_000, value in junk()) {
        exercise(&edit_json(ENCODER, "models/model.json", |json| {
            if let Some(place) = nth(json, &mut { at }) {
                *place = value;
            }
        }));
    }

    #[test]
    fn a_damaged_configuration(at in 0_usize..500, value in junk()) {
        exercise(&edit_json(MLP, "model_weights_config.json", |json| {
            if let Some(place) = nth(json, &mut { at }) {
                *place = value;
            }
        }));
    }
}
