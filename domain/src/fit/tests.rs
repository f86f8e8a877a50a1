use std::io::Cursor;

use serde_json::{Value, json};

use super::*;
use crate::program::{Archive, graph::ScalarType};

fn example(path: &str) -> Vec<u8> {
    std::fs::read(format!(
        "{}/../examples/digits/{path}",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap()
}

fn facts(path: &str) -> ProgramFacts {
    ProgramFacts::of(Archive::open(Cursor::new(example(path))).unwrap().program()).unwrap()
}

fn heads(paths: &[&str]) -> BTreeMap<Sha256, TensorsHeader> {
    let head = |path: &&str| {
        let bytes = example(path);
        let header = TensorsHeader::read_sized(&bytes, bytes.len() as u64).unwrap();
        (Sha256::of(&bytes), header)
    };
    paths.iter().map(head).collect()
}

fn training() -> Value {
    let train = Sha256::of(&example("train.safetensors"));
    json!({
        "kind": "training", "program": Sha256::of(&example("convnet.pt2")),
        "inputs": { facts("convnet.pt2").inputs[0].name.clone(): { "blob": train, "tensor": "images" } },
        "target": { "blob": train, "tensor": "labels" }, "loss": "cross_entropy",
        "optimizer": { "type": "adam", "learning_rate": 0.003 }, "epochs": 5, "batch_size": 32, "seed": 7,
    })
}

fn outcome(spec: Value, program: &str) -> Result<Fit, Vec<(String, String)>> {
    let files = heads(&[
        "train.safetensors",
        "test.safetensors",
        "vectors/convnet_trained.safetensors",
    ]);
    let spec: JobSpec = serde_json::from_value(spec).unwrap();
    check(&spec, Tier::Replicated, &facts(program), &files).map_err(|misfits| {
        misfits
            .into_iter()
            .map(|it| (it.pointer, it.detail))
            .collect()
    })
}

fn refused(change: impl FnOnce(&mut Value)) -> Vec<(String, String)> {
    let mut spec = training();
    change(&mut spec);
    outcome(spec, "convnet.pt2").unwrap_err()
}

#[test]
fn the_example_fits_and_its_work_is_that_of_its_rows() {
    let fit = outcome(training(), "convnet.pt2").unwrap();
    let per_row = facts("convnet.pt2").madds_per_row;
    assert_eq!(
        (fit.meter.rows(), fit.meter.epochs(), fit.meter.replicas()),
        (1437, 5, 2)
    );
    assert_eq!(fit.meter.madds(), u128::from(per_row) * 1437 * 5 * 3);
    assert!(
        (256 << 20..512 << 20).contains(&fit.min_memory_bytes),
        "{}",
        fit.min_memory_bytes
    );
}

#[test]
fn trained_weights_fit_the_program_they_came_from_and_no_other() {
    let test = Sha256::of(&example("test.safetensors"));
    let inference = |program: &str| {
        json!({
            "kind": "inference", "program": Sha256::of(b"whatever"), "batch_size": 360,
            "weights": Sha256::of(&example("vectors/convnet_trained.safetensors")),
            "inputs": { facts(program).inputs[0].name.clone(): { "blob": test, "tensor": "images" } },
        })
    };
    let fit = outcome(inference("convnet.pt2"), "convnet.pt2").unwrap();
    assert_eq!((fit.meter.rows(), fit.meter.epochs()), (360, 1));
    let misfits = outcome(inference("mlp.pt2"), "mlp.pt2").unwrap_err();
    assert!(
        misfits
            .iter()
            .any(|(pointer, detail)| pointer == "/weights" && detail.contains("is missing"))
    );
    assert!(
        misfits
            .iter()
            .any(|(pointer, detail)| pointer == "/weights" && detail.contains("stores no"))
    );
}

#[test]
fn tied_weights_may_come_under_any_of_their_names() {
    let mut program = facts("mlp.pt2");
    let (first, weight) = program.weights.iter().find(|(_, it)| it.is_needed).unwrap();
    let (first, weight) = (first.clone(), weight.clone());
    program.weights.insert("tied".to_owned(), weight.clone());
    let digest = Sha256::of(b"weights");
    let header = |skip: &str| {
        let named = program.weights.iter().filter(|(name, _)| *name != skip);
        let info = |shape: &[u64]| TensorInfo {
            dtype: ScalarType::F32,
            shape: shape.to_vec(),
            bytes: 0..0,
        };
        let tensors = named
            .map(|(name, it)| (name.clone(), info(&it.sizes)))
            .collect();
        TensorsHeader {
            tensors,
            data_start: 0,
            data_bytes: 0,
        }
    };
    let misfits = |skip: &[&str]| {
        let mut head = header("");
        for name in skip {
            head.tensors.remove(*name);
        }
        let files = BTreeMap::from([(digest, head)]);
        let mut check = Check {
            program: &program,
            files: &files,
            rows: None,
            misfits: Vec::new(),
        };
        check.weights(digest);
        check
            .misfits
            .into_iter()
            .map(|it| it.detail)
            .collect::<Vec<_>>()
    };
    assert_eq!(misfits(&[]), [""; 0]);
    assert_eq!(misfits(&["tied"]), [""; 0]);
    assert_eq!(misfits(&[&first]), [""; 0]);
    assert_eq!(
        misfits(&[&first, "tied"]),
        [format!("`{first}` is missing")]
    );
}

#[test]
fn each_misfit_is_named_where_it_is() {
    let input = format!("/inputs/{}", facts("convnet.pt2").inputs[0].name);
    let at =
        |misfits: Vec<(String, String)>| misfits.into_iter().map(|it| it.0).collect::<Vec<_>>();
    let test = json!(Sha256::of(&example("test.safetensors")));
    assert_eq!(
        at(refused(|it| it["target"]["tensor"] = json!("images"))),
        ["/target", "/target"]
    );
    assert_eq!(
        at(refused(|it| it["target"]["tensor"] = json!("nothing"))),
        ["/target/tensor"]
    );
    assert_eq!(
        at(refused(|it| it["target"]["blob"] = test.clone())),
        ["/target"],
        "other rows"
    );
    assert_eq!(at(refused(|it| it["output"] = json!(1))), ["/output"]);
    assert_eq!(
        at(refused(|it| it["loss"] = json!("mse"))),
        ["/target", "/target"]
    );
    assert_eq!(
        at(refused(|it| it["weights"] = it["target"]["blob"].clone())).len(),
        facts("convnet.pt2").weights.len() + 2
    );
    let wrong_input =
        refused(|it| *it.pointer_mut(&format!("{input}/tensor")).unwrap() = json!("labels"));
    assert_eq!(at(wrong_input), [input.as_str(), input.as_str()]);
    let renamed = refused(|it| {
        let tensor = it["inputs"]
            .as_object_mut()
            .unwrap()
            .remove(&input[8..])
            .unwrap();
        it["inputs"]["a/b"] = tensor;
    });
    assert_eq!(at(renamed), ["/inputs", "/inputs/a~1b"]);
}

#[test]
fn a_program_of_inference_alone_does_not_train() {
    let mut program = facts("convnet.pt2");
    program.is_trainable = false;
    let spec: JobSpec = serde_json::from_value(training()).unwrap();
    let misfits = check(&spec, Tier::None, &program, &heads(&["train.safetensors"])).unwrap_err();
    assert_eq!(misfits[0].pointer, "/program");
}

#[test]
fn a_job_without_bounds_is_not_priced() {
    let mut program = facts("convnet.pt2");
    program.madds_per_row = u64::MAX;
    let mut spec = training();
    spec["epochs"] = json!(10_000);
    let spec: JobSpec = serde_json::from_value(spec).unwrap();
    let files = heads(&["train.safetensors"]);
    assert!(
        check(&spec, Tier::None, &program, &files).is_ok(),
        "2^64 x 1437 x 30000 is below 2^120"
    );
    let mut wide = files;
    for header in wide.values_mut() {
        for info in header.tensors.values_mut() {
            info.shape[0] = 1 << 52;
        }
    }
    let misfits = check(&spec, Tier::None, &program, &wide).unwrap_err();
    assert_eq!(misfits[0].detail, "the job is too large to be priced");
}

#[test]
fn a_sampled_training_has_a_checkpoint_every_ten_steps() {
    let files = heads(&["train.safetensors"]);
    let checked = |steps: u32, tier| {
        let mut spec = training();
        spec["segment_steps"] = json!(steps);
        let spec: JobSpec = serde_json::from_value(spec).unwrap();
        let misfits = check(&spec, tier, &facts("convnet.pt2"), &files).err();
        misfits.map(|misfits| misfits[0].pointer.clone())
    };
    assert_eq!(checked(10, Tier::Sampled), None);
    assert_eq!(
        checked(11, Tier::Sampled).as_deref(),
        Some("/segment_steps")
    );
    assert_eq!(checked(11, Tier::Replicated), None);
}

#[test]
fn facts_survive_their_stored_form() {
    for path in ["convnet.pt2", "mlp.pt2", "encoder.pt2"] {
        let facts = facts(path);
        assert_eq!(
            serde_json::from_value::<ProgramFacts>(serde_json::to_value(&facts).unwrap()).unwrap(),
            facts
        );
    }
}
