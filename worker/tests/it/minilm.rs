//! A real model of texts: what `scripts/minilm` made, against PyTorch's own results for it, through everything that a call of it passes
//! but the network.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    sync::Arc,
};

use comptoir_domain::{
    fit::ProgramFacts,
    job::{InferenceSpec, JobSpec, TensorRef},
    model::{Given, Manifest, Parts},
    program::Archive,
    tensors::{self, TensorView, Tensors},
};
use comptoir_text::{Applied, Overlong, Tokenizer, feed, results, vocabulary};
use comptoir_wire::calls::Tensor;
use serde::Deserialize;

use crate::harness::Bench;

/// How near an embedding is to PyTorch's.
const COSINE_MIN: f64 = 0.9999;

/// Made by `examples/minilm/export.py`: each text alone, without what fills a row.
#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    embedding: Vec<f32>,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn cosine(one: &[f32], other: &[f32]) -> f64 {
    let dot = |one: &[f32], other: &[f32]| -> f64 {
        let pairs = one.iter().zip(other);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    assert_eq!(one.len(), other.len());
    dot(one, other) / (dot(one, one) * dot(other, other)).sqrt()
}

/// What a job makes of the inputs of a call.
async fn computed(
    bench: &mut Bench,
    program: &[u8],
    facts: &ProgramFacts,
    inputs: &[Tensor],
) -> Tensor {
    let named = facts.inputs.iter().zip(inputs);
    let views = named.map(|(input, tensor)| TensorView {
        name: &input.name,
        dtype: tensor.dtype,
        shape: &tensor.shape,
        data: &tensor.bytes,
    });
    let file = bench.blob(&tensors::to_bytes(views.collect::<Vec<_>>()).unwrap());
    let input = |name: &String| {
        let tensor = TensorRef {
            blob: file,
            tensor: name.clone(),
            dataset_version: None,
        };
        (name.clone(), tensor)
    };
    let spec = InferenceSpec {
        program: bench.blob(program),
        weights: None,
        inputs: facts.inputs.iter().map(|it| input(&it.name)).collect(),
        batch_size: 4,
    };
    let output = Bench::output(&bench.run(JobSpec::Inference(spec)).await);
    let output = Tensors::read(&output).unwrap();
    let output = output.tensor("output_0").unwrap();
    Tensor {
        dtype: output.dtype,
        shape: output.shape.to_vec(),
        bytes: output.data.to_vec(),
    }
}

#[tokio::test]
async fn texts_get_the_embeddings_that_pytorch_computes() {
    let folder = repository().join("target/minilm");
    let Ok(program) = fs::read(folder.join("minilm.pt2")) else {
        eprintln!("skipped: `make minilm` makes the model that this is about");
        return;
    };
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let manifest: Manifest = serde_json::from_slice(&read("manifest.json")).unwrap();
    let tokenizer = Tokenizer::read(&read("tokenizer.json")).unwrap();
    let archive = Archive::open(Cursor::new(&program)).unwrap();
    let facts = Arc::new(ProgramFacts::of(archive.program()).unwrap());
    let (text, result) = (
        manifest.text.as_ref().unwrap(),
        manifest.result.as_ref().unwrap(),
    );
    let parts = Parts {
        programs: &[(manifest.programs.infer, Arc::clone(&facts))].into(),
        weights: None,
        vocabulary: Some(vocabulary(&tokenizer, text)),
    };
    assert_eq!(manifest.misfits(parts), []);
    let given = result.given(&facts, None);
    assert_eq!(given, Some(Given::Embedding { dimensions: 384 }));

    let reference = fs::read(repository().join("examples/minilm/vectors.json")).unwrap();
    let reference: Reference = serde_json::from_slice(&reference).unwrap();
    let texts: Vec<_> = reference.cases.iter().map(|it| it.text.as_str()).collect();
    let fed = feed((text, &tokenizer), &facts, &texts, Overlong::Refuse).unwrap();
    let counted: usize = reference.cases.iter().map(|it| it.ids.len()).sum();
    assert_eq!(fed.tokens_total(), counted as u64);

    let mut bench = Bench::new();
    let output = computed(&mut bench, &program, &facts, &fed.inputs).await;
    let made = results(result, &facts, &[output], Some(&fed.tokens)).unwrap();
    for (case, made) in reference.cases.iter().zip(made) {
        let Applied::Vector(embedding) = made else {
            panic!("no vector")
        };
        let found = cosine(&embedding, &case.embedding);
        println!("{found:.8} {:?}", case.text);
        assert!(found >= COSINE_MIN, "{found} for {:?}", case.text);
    }
}
