use comptoir_wire::calls::Tensor;

use super::*;

fn port(name: &str, dtype: ScalarType, row: &[u64]) -> Port {
    Port {
        name: name.to_owned(),
        dtype,
        row: row.to_vec(),
    }
}

fn x() -> Vec<Port> {
    vec![port("x", ScalarType::F32, &[2])]
}

fn read_inputs(text: &[u8], ports: &[Port]) -> Result<Vec<Tensor>, Refusals> {
    match read_body(text, ports)? {
        Sent::Tensors(tensors) => Ok(tensors),
        Sent::Texts(texts) => panic!("{texts:?}"),
    }
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|it| it.to_le_bytes()).collect()
}

fn refused(text: &str, ports: &[Port]) -> (String, String) {
    let mut refusals = read_inputs(text.as_bytes(), ports).unwrap_err();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    refusals.remove(0)
}

#[test]
fn nested_arrays_become_rows_and_come_back_as_they_were() {
    let read = read_inputs(br#"{"inputs": {"x": [[1, 2.5], [-3e-3, 4]]}}"#, &x()).unwrap();
    let tensor = Tensor {
        dtype: ScalarType::F32,
        shape: vec![2, 2],
        bytes: floats(&[1.0, 2.5, -3e-3, 4.0]),
    };
    assert_eq!(read, std::slice::from_ref(&tensor));
    let text = serde_json::to_string(&Nested(&tensor)).unwrap();
    assert_eq!(text, "[[1.0,2.5],[-0.003,4.0]]");
    let scalars = [port("x", ScalarType::I64, &[])];
    let read = read_inputs(br#"{"inputs": {"x": [1, -9007199254740993]}}"#, &scalars).unwrap();
    assert_eq!(
        serde_json::to_string(&Nested(&read[0])).unwrap(),
        "[1,-9007199254740993]",
        "whole numbers stay whole"
    );
}

#[test]
fn what_does_not_fit_is_refused_where_it_is() {
    let ports = x();
    for (text, pointer, detail) in [
        ("{}", "/inputs", "missing"),
        (r#"{"inputs": {}}"#, "/inputs/x", "missing"),
        (r#"{"inputs": {"x": []}}"#, "/inputs/x", "no row"),
        (r#"{"inputs": {"x": [[1]]}}"#, "/inputs/x", "one of 1 found"),
        (r#"{"inputs": {"x": [[1, 2, 3]]}}"#, "/inputs/x", "longer"),
        (
            r#"{"inputs": {"x": [[1, [2]]]}}"#,
            "/inputs/x",
            "nested too deep",
        ),
        (r#"{"inputs": {"x": [1, 2]}}"#, "/inputs/x", "array of 2"),
        (r#"{"inputs": {"x": [[1, null]]}}"#, "/inputs/x", "a number"),
        (r#"{"inputs": {"x": [[1, "2"]]}}"#, "/inputs/x", "a number"),
        (
            r#"{"inputs": {"x": [[1, 1e300]]}}"#,
            "/inputs/x",
            "too large",
        ),
        (r#"{"inputs": {"x": [[1, NaN]]}}"#, "/inputs/x", "expected"),
        (
            r#"{"inputs": {"x": [[1, 2]], "x": [[1, 2]]}}"#,
            "/inputs/x",
            "twice",
        ),
        (
            r#"{"inputs": {"y~/": [[1, 2]]}}"#,
            "/inputs/y~0~1",
            "no such input",
        ),
        (
            r#"{"inputs": {"x": [[1, 2]]}, "inputs": {}}"#,
            "/inputs",
            "twice",
        ),
        (r#"{"input": {}}"#, "/input", "no such field"),
        (r#"{"inputs": {"x": [[1, 2]]}} x"#, "/inputs", "trailing"),
        ("[]", "", "object"),
    ] {
        let (at, why) = refused(text, &ports);
        assert_eq!(at, pointer, "{text}: {why}");
        assert!(why.contains(detail), "{text}: {why}");
    }
}

#[test]
fn whole_numbers_are_bounded_by_their_type_and_are_no_fractions() {
    let ports = [port("x", ScalarType::U8, &[])];
    assert!(
        refused(r#"{"inputs": {"x": [256]}}"#, &ports)
            .1
            .contains("does not fit")
    );
    assert!(
        refused(r#"{"inputs": {"x": [-1]}}"#, &ports)
            .1
            .contains("does not fit")
    );
    assert!(
        refused(r#"{"inputs": {"x": [1.5]}}"#, &ports)
            .1
            .contains("whole number")
    );
    assert!(
        refused(r#"{"inputs": {"x": [true]}}"#, &ports)
            .1
            .contains("whole number")
    );
    let flags = [port("x", ScalarType::Bool, &[])];
    assert!(
        refused(r#"{"inputs": {"x": [1]}}"#, &flags)
            .1
            .contains("true or false")
    );
}

#[test]
fn inputs_have_as_many_rows_as_each_other() {
    let two = [
        port("a", ScalarType::F32, &[]),
        port("b", ScalarType::F32, &[]),
    ];
    let (at, _) = refused(r#"{"inputs": {"b": [1, 2], "a": [1]}}"#, &two);
    assert_eq!(at, "/inputs/a");
    let read = read_inputs(br#"{"inputs": {"b": [2], "a": [1]}}"#, &two).unwrap();
    assert_eq!(read[0].bytes, floats(&[1.0]), "in the order of the program");
}

#[test]
fn a_file_of_tensors_is_read_as_it_was_written_and_refused_where_it_does_not_fit() {
    let tensor = Tensor {
        dtype: ScalarType::F32,
        shape: vec![3, 2],
        bytes: floats(&[1.0, 2.0, 3.0, f32::NAN, 5.0, 6.0]),
    };
    let file = write_file([("x", &tensor)]);
    let read = read_file(&file, &x()).unwrap();
    assert_eq!(
        (&read[0].bytes, &read[0].shape),
        (&tensor.bytes, &tensor.shape)
    );
    let refused = |ports: &[Port]| {
        let refusals = read_file(&file, ports).unwrap_err();
        refusals.into_iter().map(|(at, _)| at).collect::<Vec<_>>()
    };
    assert_eq!(refused(&[port("x", ScalarType::F64, &[2])]), ["/inputs/x"]);
    assert_eq!(refused(&[port("x", ScalarType::F32, &[3])]), ["/inputs/x"]);
    assert_eq!(
        refused(&[port("y", ScalarType::F32, &[2])]),
        ["/inputs/x", "/inputs/y"]
    );
    assert!(read_file(&file[..file.len() - 1], &x()).is_err());
}

#[test]
fn numbers_that_json_has_no_word_for_are_null_and_halves_are_what_they_say() {
    let written = |dtype, bytes: Vec<u8>| {
        let tensor = Tensor {
            dtype,
            shape: vec![bytes.len() as u64 / dtype.size()],
            bytes,
        };
        serde_json::to_string(&Nested(&tensor)).unwrap()
    };
    assert_eq!(
        written(ScalarType::F32, floats(&[f32::NAN, f32::INFINITY, 0.5])),
        "[null,null,0.5]"
    );
    let halves = [0x3c00_u16, 0xc000, 0x3555, 0x0001, 0x7bff, 0x7c00];
    let halves = halves.iter().flat_map(|it| it.to_le_bytes()).collect();
    // 1, -2, 1/3, the smallest above zero, the largest, and infinity: the examples of IEEE 754 binary16.
    assert_eq!(
        written(ScalarType::F16, halves),
        "[1.0,-2.0,0.33325195,5.9604645e-8,65504.0,null]"
    );
    let brain = [0x3f80_u16, 0xc000]
        .iter()
        .flat_map(|it| it.to_le_bytes())
        .collect();
    assert_eq!(written(ScalarType::Bf16, brain), "[1.0,-2.0]");
}

#[test]
fn numbers_of_a_known_shape_may_be_nested_or_flat_and_must_be_all_there() {
    let read = |text| read_numbers(text, ScalarType::F32, &[2, 2]);
    let expected = floats(&[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(read("[1, 2, 3, 4]").unwrap(), expected);
    assert_eq!(read(" [ [1, 2], [3, 4]]").unwrap(), expected);
    for wrong in [
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        "[[1, 2]]",
        "[[1, 2, 3, 4]]",
        "1",
        "[[1, 2], 3, 4]",
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}
