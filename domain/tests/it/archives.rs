//! What real exports read as.

use comptoir_domain::{
    program::{
        ArchiveError, BatchOutOfRange, InvalidProgram, Role,
        graph::{Argument, ScalarType},
        operators,
    },
    tensors::Tensors,
};
use zip::CompressionMethod;

use crate::fixture::{
    CONVNET, ENCODER, MEMORY, MLP, edit_json, fixture, open, pack, program, refusal, unpack,
};

#[test]
fn a_real_export_gives_its_graph_its_tensors_and_its_batch() {
    let program = program(CONVNET);
    assert!(program.training_ir && program.is_trainable());
    assert!(program.torch_version.starts_with("2.13"));
    assert_eq!((program.batch.min, program.batch.max), (1, 65_536));
    let inputs: Vec<_> = program
        .user_inputs()
        .map(|(name, meta)| (name, meta.dtype))
        .collect();
    assert_eq!(inputs, [("x", ScalarType::F32)]);
    let (_, output) = program.user_outputs().next().unwrap();
    assert_eq!(program.batch.sizes(output, 7), Ok(vec![7, 10]));
    assert_eq!(program.tensors["conv1.weight"].sizes, [16, 1, 3, 3]);
    assert_eq!(
        program.tensors["norm1.running_mean"].role,
        Role::Buffer { persistent: true }
    );
    assert_eq!(
        program.tensors["norm1.num_batches_tracked"].dtype,
        ScalarType::I64
    );
    let dropout = program
        .graph
        .nodes
        .iter()
        .find(|node| node.target.contains("dropout"))
        .unwrap();
    assert_eq!(dropout.input("train"), Some(&Argument::Bool(true)));
}

#[test]
fn payloads_are_the_weights_pytorch_saved() {
    let vectors = include_bytes!("../../../examples/digits/vectors/mlp_start.safetensors");
    let expected = Tensors::read(vectors).unwrap();
    let mut archive = open(MLP).unwrap();
    let program = archive.program().clone();
    assert_eq!(program.tensors.len(), expected.iter().count());
    for (name, tensor) in &program.tensors {
        assert!(tensor.is_contiguous());
        let view = expected.tensor(name).unwrap();
        assert_eq!((tensor.dtype, &tensor.sizes[..]), (view.dtype, view.shape));
        assert_eq!(archive.payload(&tensor.payload).unwrap(), view.data);
    }
}

#[test]
fn tied_weights_are_one_tensor_with_one_saved_name() {
    let program = program(ENCODER);
    let (embedding, head) = (
        &program.tensors["embedding.weight"],
        &program.tensors["head.weight"],
    );
    assert!(
        embedding.is_same_memory(head) && !embedding.is_same_memory(&program.tensors["position"])
    );
    assert_eq!(program.saved_name("head.weight"), Some("embedding.weight"));
    assert_eq!(program.saved_name("position"), Some("position"));
    assert_eq!(program.saved_name("nothing"), None);
    let mask = &program.tensors["mask"];
    assert_eq!(
        (mask.role, mask.payload.as_str()),
        (
            Role::Buffer { persistent: false },
            "data/constants/tensor_0"
        )
    );
}

#[test]
fn strides_offsets_frozen_parameters_and_literals_are_kept() {
    let program = program(MEMORY);
    let tensor = |name: &str| &program.tensors[name];
    assert_eq!(
        (&tensor("columns").sizes[..], &tensor("columns").strides[..]),
        (&[6, 8][..], &[1, 6][..])
    );
    assert!(!tensor("columns").is_contiguous());
    assert_eq!(tensor("low").payload, tensor("high").payload);
    assert_eq!(
        (tensor("low").storage_offset, tensor("high").storage_offset),
        (0, 6)
    );
    assert_eq!(
        tensor("frozen").role,
        Role::Parameter {
            requires_grad: false
        }
    );
    assert_eq!(
        tensor("one.weight").role,
        Role::Parameter {
            requires_grad: true
        }
    );
    assert!(
        program
            .tensors
            .values()
            .any(|tensor| tensor.role == Role::Constant)
    );
}

#[test]
fn an_archive_packed_again_with_compression_is_the_same_program() {
    let packed = pack(&unpack(CONVNET), CompressionMethod::Deflated);
    assert!(packed.len() < CONVNET.len());
    assert_eq!(program(&packed), program(CONVNET));
    let payload = "data/weights/weight_4";
    assert_eq!(
        open(&packed).unwrap().payload(payload).unwrap(),
        open(CONVNET).unwrap().payload(payload).unwrap()
    );
}

#[test]
fn a_decomposed_export_only_infers() {
    let program = program(&fixture("convolutions_decomposed"));
    assert!(!program.training_ir && !program.is_trainable());
}

#[test]
fn programs_without_one_batch_are_refused() {
    for (name, part) in [
        ("fixed_batch", "fixed first dimension"),
        ("two_dynamic", "second dynamic dimension"),
        ("summed_rows", "one row for each row of input"),
    ] {
        let error = refusal(&fixture(name)).to_string();
        assert!(error.contains(part), "{name}: {error}");
    }
}

#[test]
fn programs_that_change_what_is_not_theirs_are_refused() {
    for (name, part) in [
        ("own_parameter", "a change of its own parameters"),
        ("own_input", "a change of its inputs"),
    ] {
        let error = refusal(&fixture(name));
        let ArchiveError::Program(error) = error else {
            panic!("{name}: {error}")
        };
        assert!(
            error.to_string().contains(part)
                || matches!(error, InvalidProgram::ForeignWrite { .. }),
            "{error}"
        );
    }
    // The same write, hidden from the signature.
    let hidden = edit_json(MLP, "model.json", |json| {
        json["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.relu_.default".into();
        json["graph_module"]["graph"]["nodes"][0]["inputs"][0]["name"] = "self".into();
    });
    assert!(matches!(
        refusal(&hidden),
        ArchiveError::Program(InvalidProgram::ForeignWrite { .. })
    ));
}

#[test]
fn operators_that_are_not_listed_are_refused() {
    let error = refusal(&fixture("recurrent"));
    assert!(
        matches!(error, ArchiveError::Program(InvalidProgram::UnknownOperator(name)) if name.contains("lstm"))
    );
    for target in [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Tensor",
        "torch.ops.prims.abs.default",
    ] {
        assert_eq!(operators::rule(target), None);
        let swapped = edit_json(MLP, "model.json", |json| {
            json["graph_module"]["graph"]["nodes"][0]["target"] = target.into();
        });
        assert!(matches!(
            refusal(&swapped),
            ArchiveError::Program(InvalidProgram::UnknownOperator(_))
        ));
    }
}

#[test]
fn the_operator_list_is_sorted_so_that_every_entry_is_found() {
    let targets: Vec<_> = operators::targets().collect();
    assert!(targets.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(
        targets
            .iter()
            .all(|target| operators::rule(target).is_some())
    );
    assert_eq!(
        operators::aten_name("torch.ops.aten.add_.Tensor"),
        Some(("aten::add_".to_owned(), "Tensor"))
    );
    assert_eq!(
        operators::aten_name("torch.ops.aten.linear.default"),
        Some(("aten::linear".to_owned(), ""))
    );
    assert_eq!(operators::aten_name("_operator.mul"), None);
}

#[test]
fn a_graph_that_reads_what_nothing_defines_is_refused() {
    let edit = |change: fn(&mut serde_json::Value)| {
        refusal(&edit_json(MLP, "model.json", |json| {
            change(&mut json["graph_module"]["graph"]);
        }))
    };
    let undefined =
        edit(|graph| graph["nodes"][0]["inputs"][0]["arg"]["as_tensor"]["name"] = "relu".into());
    assert!(
        matches!(undefined, ArchiveError::Program(InvalidProgram::Undefined(name)) if name == "relu")
    );
    let twice = edit(|graph| graph["nodes"][1] = graph["nodes"][0].clone());
    assert!(matches!(
        twice,
        ArchiveError::Program(InvalidProgram::Redefined(_))
    ));
    let undescribed = edit(|graph| {
        graph["tensor_values"]
            .as_object_mut()
            .unwrap()
            .remove("relu");
    });
    assert!(
        matches!(undescribed, ArchiveError::Program(InvalidProgram::Undescribed(name)) if name == "relu")
    );
    let unbound = edit(|graph| {
        graph["tensor_values"]["relu"]["sizes"][0]["as_expr"]["expr_str"] =
            "Symbol('u0', integer=True)".into();
    });
    assert!(
        matches!(unbound, ArchiveError::Program(InvalidProgram::Undescribed(name)) if name == "relu")
    );
}

#[test]
fn every_batch_of_a_job_must_be_one_the_export_holds_for() {
    let mut batch = program(MLP).batch;
    batch.min = 2;
    batch.max = 64;
    assert_eq!(batch.allows(130, 64), Ok(()));
    assert_eq!(batch.allows(1, 64).unwrap_err().found, 1);
    assert_eq!(
        batch.allows(65, 64),
        Err(BatchOutOfRange {
            rows: 65,
            batch_size: 64,
            found: 1,
            min: 2,
            max: 64
        })
    );
    assert_eq!(batch.allows(65, 65).unwrap_err().found, 65);
    assert_eq!(batch.allows(65, 0).unwrap_err().found, 0);
    assert_eq!(
        batch.allows(10, 128),
        Ok(()),
        "the one batch there is has 10 rows"
    );
}
