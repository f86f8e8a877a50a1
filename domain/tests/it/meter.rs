//! The meter agrees with PyTorch's own count, and nothing of the example batch leaks into it.

use comptoir_domain::program::{
    meter::{self, MeterError},
    symbolic::Polynomial,
};
use serde_json::Value;

use crate::fixture::{CONVNET, ENCODER, MLP, edit_json, fixture, program};

fn per_row(bytes: &[u8]) -> Result<u64, MeterError> {
    meter::multiply_adds_per_row(&program(bytes))
}

#[test]
fn the_meter_agrees_with_the_count_of_pytorch() {
    let vectors: Value = serde_json::from_str(include_str!(
        "../../../examples/digits/vectors/vectors.json"
    ))
    .unwrap();
    for (name, bytes) in [("mlp", MLP), ("convnet", CONVNET), ("encoder", ENCODER)] {
        assert_eq!(
            per_row(bytes),
            Ok(vectors["multiply_adds_per_row"][name].as_u64().unwrap()),
            "{name}"
        );
    }
    let fixtures: Value =
        serde_json::from_str(include_str!("../../fixtures/programs.json")).unwrap();
    let fixtures = fixtures["programs"].as_object().unwrap();
    assert_eq!(fixtures.len(), 7);
    for (name, expected) in fixtures {
        assert_eq!(
            per_row(&fixture(name)),
            Ok(expected["multiply_adds"].as_u64().unwrap()),
            "{name}"
        );
    }
}

#[test]
fn a_multilayer_perceptron_costs_the_sum_of_its_weight_matrices() {
    assert_eq!(per_row(MLP), Ok(64 * 96 + 96 * 48 + 48 * 10));
}

#[test]
fn the_size_of_the_example_batch_plays_no_part() {
    let other = edit_json(CONVNET, "model.json", |json| {
        let text = json
            .to_string()
            .replace(r#""hint":{"as_int":4}"#, r#""hint":{"as_int":4000}"#);
        *json = serde_json::from_str(&text).unwrap();
    });
    assert_eq!(per_row(&other), per_row(CONVNET));
}

#[test]
fn rows_that_multiply_each_other_have_no_price() {
    let program = program(&fixture("rows_squared"));
    assert_eq!(meter::work(&program).unwrap().coefficient(2), 8);
    assert_eq!(
        meter::multiply_adds_per_row(&program),
        Err(MeterError::NotPerRow(2))
    );
}

#[test]
fn work_that_does_not_depend_on_the_batch_counts_once_per_row() {
    // The head of the perceptron on a fixed batch of 3: 3 × 48 × 10 for any batch.
    let constant = edit_json(MLP, "model.json", |json| {
        let nodes = json["graph_module"]["graph"]["nodes"]
            .as_array_mut()
            .unwrap();
        let mut node = nodes.last().unwrap().clone();
        node["inputs"][0]["arg"]["as_tensor"]["name"] = "p_head_weight".into();
        node["outputs"][0]["as_tensor"]["name"] = "constant".into();
        nodes.push(node);
        let values = json["graph_module"]["graph"]["tensor_values"]
            .as_object_mut()
            .unwrap();
        let mut meta = values["linear_2"].clone();
        meta["sizes"][0] = serde_json::json!({"as_int": 3});
        values.insert("constant".to_owned(), meta);
    });
    let program = program(&constant);
    let alone = per_row(MLP).unwrap();
    let work = meter::work(&program).unwrap();
    assert_eq!(
        work,
        Polynomial::constant(3 * 480)
            .add(
                &Polynomial::symbol()
                    .mul(&Polynomial::constant(alone.into()))
                    .unwrap()
            )
            .unwrap()
    );
    assert_eq!(meter::multiply_adds_per_row(&program), Ok(alone + 3 * 480));
}

#[test]
fn work_too_large_to_price_is_refused() {
    let huge = edit_json(MLP, "model.json", |json| {
        json["graph_module"]["graph"]["tensor_values"]["linear_2"]["sizes"] =
            serde_json::json!([{"as_expr": {"expr_str": "Symbol('s77')"}}, {"as_int": i64::MAX}]);
    });
    let symbol = program(MLP).batch.symbol;
    let huge = edit_json(&huge, "model.json", |json| {
        *json = serde_json::from_str(
            &json
                .to_string()
                .replace("Symbol('s77')", &format!("Symbol('{symbol}')")),
        )
        .unwrap();
    });
    assert_eq!(per_row(&huge), Err(MeterError::TooLarge));
}
