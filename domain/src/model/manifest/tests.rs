//! What fits together, and what names it.

use super::*;
use crate::{
    fit::{RowShape, Weight},
    program::graph::ScalarType,
    tensors::TensorInfo,
};

const INFER: Sha256 = Sha256([1; 32]);
const TRAIN: Sha256 = Sha256([2; 32]);
const WEIGHTS: Sha256 = Sha256([3; 32]);

fn facts() -> ProgramFacts {
    let row = |name: &str, row: &[u64]| RowShape {
        name: name.to_owned(),
        dtype: "F32".to_owned(),
        row: row.to_vec(),
        row_bytes: row.iter().product::<u64>() * 4,
    };
    let weight = Weight {
        saved_as: "fc.weight".to_owned(),
        dtype: "F32".to_owned(),
        sizes: vec![3, 4],
        is_needed: true,
    };
    ProgramFacts {
        torch_version: "2.13.0".to_owned(),
        is_trainable: true,
        batch_min: 1,
        batch_max: u64::MAX,
        inputs: vec![row("x", &[4])],
        outputs: vec![row("logits", &[3])],
        weights: BTreeMap::from([("fc.weight".to_owned(), weight)]),
        madds_per_row: 12,
        stored_bytes: 48,
        learned_bytes: 48,
        value_bytes: vec![0, 12],
    }
}

fn head(shape: &[u64]) -> TensorsHeader {
    let info = TensorInfo {
        dtype: ScalarType::F32,
        shape: shape.to_vec(),
        bytes: 0..48,
    };
    TensorsHeader {
        tensors: BTreeMap::from([("fc.weight".to_owned(), info)]),
        data_start: 0,
        data_bytes: 48,
    }
}

fn manifest() -> Manifest {
    Manifest {
        programs: Programs {
            infer: INFER,
            train: Some(TRAIN),
            generate: None,
        },
        weights: Some(WEIGHTS),
        labels: Some(Labels {
            output: "logits".to_owned(),
            names: ["a", "b", "c"].map(str::to_owned).to_vec(),
        }),
        text: None,
        result: None,
        generation: None,
    }
}

fn pointers(manifest: &Manifest, train: ProgramFacts, head: Option<&TensorsHeader>) -> Vec<String> {
    let programs = BTreeMap::from([(INFER, Arc::new(facts())), (TRAIN, Arc::new(train))]);
    let parts = Parts {
        programs: &programs,
        weights: head,
        vocabulary: None,
    };
    let misfits = manifest.misfits(parts);
    misfits.into_iter().map(|it| it.pointer).collect()
}

#[test]
fn programs_and_weights_fit_together_or_each_misfit_is_named() {
    let good = head(&[3, 4]);
    assert!(pointers(&manifest(), facts(), Some(&good)).is_empty());
    let wide = head(&[3, 5]);
    assert_eq!(pointers(&manifest(), facts(), Some(&wide)), ["/weights"; 2]);
    let fixed = ProgramFacts {
        is_trainable: false,
        ..facts()
    };
    assert_eq!(
        pointers(&manifest(), fixed, Some(&good)),
        ["/programs/train"]
    );
}

#[test]
fn two_archives_share_one_file_of_weights() {
    let without = Manifest {
        weights: None,
        ..manifest()
    };
    assert_eq!(pointers(&without, facts(), None), ["/weights"]);
    let one = Manifest {
        programs: Programs {
            infer: INFER,
            train: Some(INFER),
            generate: None,
        },
        ..without
    };
    assert!(pointers(&one, facts(), None).is_empty());
}

#[test]
fn labels_name_each_class_of_an_output() {
    let labelled = |output: &str, names: &[&str]| Manifest {
        labels: Some(Labels {
            output: output.to_owned(),
            names: names.iter().map(|it| (*it).to_owned()).collect(),
        }),
        ..manifest()
    };
    let refused = |it: Manifest| pointers(&it, facts(), None);
    assert_eq!(
        refused(labelled("scores", &["a", "b", "c"])),
        ["/labels/output"]
    );
    assert_eq!(refused(labelled("logits", &["a", "b"])), ["/labels/names"]);
    assert_eq!(
        refused(labelled("logits", &["a", "b\n", ""])),
        ["/labels/names/1", "/labels/names/2"]
    );
}

#[test]
fn what_names_a_version_changes_with_every_part_of_it() {
    let changed = [
        Manifest {
            weights: None,
            ..manifest()
        },
        Manifest {
            labels: None,
            ..manifest()
        },
        Manifest {
            programs: Programs {
                infer: INFER,
                train: None,
                generate: None,
            },
            ..manifest()
        },
        Manifest {
            programs: Programs {
                infer: TRAIN,
                train: Some(TRAIN),
                generate: None,
            },
            ..manifest()
        },
    ];
    for other in &changed {
        assert_ne!(other.digest(), manifest().digest());
    }
    let text = serde_json::to_string(&changed[2]).unwrap();
    assert!(!text.contains("null"), "what is absent is left out: {text}");
    assert_eq!(manifest().blobs(), [INFER, TRAIN, WEIGHTS]);
}

#[test]
fn versions_that_say_nothing_of_texts_keep_their_digests() {
    let bare = Manifest::trained(INFER, WEIGHTS);
    let document = serde_json::json!({
        "programs": { "infer": INFER, "train": INFER },
        "weights": WEIGHTS,
    });
    assert_eq!(serde_json::to_value(&bare).unwrap(), document);
    assert_eq!(bare.digest(), Sha256::of_document(&document).unwrap());
}

#[test]
fn what_is_left_out_is_what_it_stands_for() {
    let said = r#"{"tokenizer":"0404040404040404040404040404040404040404040404040404040404040404","ids":"ids","zeros":[],"pad_id":0,"special_tokens":true}"#;
    let text: TextInput = serde_json::from_str(said).unwrap();
    let short = serde_json::to_string(&text).unwrap();
    assert!(!short.contains("zeros") && !short.contains("special_tokens"));
    assert_eq!(serde_json::from_str::<TextInput>(&short).unwrap(), text);
    let said = r#"{"output":"hidden","normalise":false,"softmax":false}"#;
    let result: Outcome = serde_json::from_str(said).unwrap();
    assert_eq!(
        serde_json::to_string(&result).unwrap(),
        r#"{"output":"hidden"}"#
    );
    for wrong in [
        r#"{"output":"a","top_k":0}"#,
        r#"{"output":"a","pooling":"max"}"#,
        r#"{"output":"a","relu":true}"#,
    ] {
        assert!(serde_json::from_str::<Outcome>(wrong).is_err(), "{wrong}");
    }
}

/// A program of texts: 8 tokens of a vocabulary of 30, a vector of 3 numbers for each, and one of 5 for all.
fn encoder() -> ProgramFacts {
    let row = |name: &str, dtype: &str, row: &[u64]| RowShape {
        name: name.to_owned(),
        dtype: dtype.to_owned(),
        row: row.to_vec(),
        row_bytes: row.iter().product::<u64>() * 4,
    };
    let mut facts = facts();
    facts.inputs = vec![row("ids", "I64", &[8]), row("mask", "I32", &[8])];
    facts.outputs = vec![
        row("hidden", "F32", &[8, 3]),
        row("pooled", "F32", &[5]),
        row("count", "I64", &[5]),
    ];
    facts.weights.get_mut("fc.weight").unwrap().sizes = vec![30, 3];
    facts
}

fn texts() -> Manifest {
    Manifest {
        labels: None,
        text: Some(TextInput {
            tokenizer: Sha256([4; 32]),
            ids: "ids".to_owned(),
            mask: Some("mask".to_owned()),
            zeros: Vec::new(),
            pad_id: 0,
            special_tokens: true,
        }),
        result: Some(Outcome {
            output: "hidden".to_owned(),
            pooling: Some(Pooling::Mean),
            normalise: true,
            softmax: false,
            top_k: None,
        }),
        ..Manifest::trained(INFER, WEIGHTS)
    }
}

const VOCABULARY: Vocabulary = Vocabulary {
    end: 30,
    around: 2,
    has_pad: true,
};

/// Where a manifest that was changed does not fit the program.
fn refused(change: impl FnOnce(&mut Manifest, &mut ProgramFacts, &mut Vocabulary)) -> Vec<String> {
    let (mut manifest, mut infer, mut vocabulary) = (texts(), encoder(), VOCABULARY);
    change(&mut manifest, &mut infer, &mut vocabulary);
    let programs = BTreeMap::from([(INFER, Arc::new(infer))]);
    let parts = Parts {
        programs: &programs,
        weights: None,
        vocabulary: Some(vocabulary),
    };
    let misfits = manifest.misfits(parts).into_iter();
    misfits.map(|it| it.pointer).collect()
}

#[test]
fn texts_fill_every_input_of_the_program_or_each_misfit_is_named() {
    let text = |change: fn(&mut TextInput)| refused(|it, _, _| change(it.text.as_mut().unwrap()));
    assert_eq!(refused(|_, _, _| {}), [""; 0]);
    assert_eq!(text(|it| it.mask = None), ["/text"]);
    assert_eq!(
        text(|it| it.ids = "x".to_owned())[..2],
        ["/text/ids", "/text"]
    );
    let twice = text(|it| it.mask = Some("ids".to_owned()));
    assert_eq!(twice, ["/text/mask", "/text"]);
    assert_eq!(
        text(|it| it.zeros = vec!["kinds".to_owned()]),
        ["/text/zeros/0"]
    );
    let many = text(|it| it.zeros = vec!["kinds".to_owned(); ZEROS_MAX + 1]);
    assert_eq!(many[0], "/text/zeros");
    let zeros = text(|it| it.zeros = vec![it.mask.take().unwrap()]);
    assert_eq!(zeros, [""; 0], "zeros are for any input of tokens");
}

#[test]
fn inputs_of_tokens_are_whole_numbers_of_one_fixed_length() {
    let input = |at: usize, dtype: &str, row: &[u64]| {
        refused(|_, infer, _| {
            infer.inputs[at].dtype = dtype.to_owned();
            infer.inputs[at].row = row.to_vec();
        })
    };
    assert_eq!(input(0, "F32", &[8]), ["/text/ids"]);
    assert_eq!(input(1, "BOOL", &[8]), ["/text/mask"]);
    assert_eq!(input(1, "I64", &[9]), ["/text/mask"]);
    assert_eq!(input(1, "I64", &[1, 8]), ["/text/mask"]);
    let without_length = input(0, "I64", &[]);
    assert_eq!(without_length, ["/text/ids", "/result/pooling"]);
    for wrong in [0, TEXT_TOKENS_MAX + 1] {
        assert_eq!(input(0, "I64", &[wrong])[0], "/text/ids");
    }
}

#[test]
fn a_tokenizer_fits_the_tables_of_its_program() {
    assert_eq!(refused(|_, _, it| it.end = 31), ["/text/tokenizer"]);
    assert_eq!(refused(|_, _, it| it.has_pad = false), ["/text/pad_id"]);
    assert_eq!(refused(|_, _, it| it.around = 8), ["/text/ids"]);
}

#[test]
fn a_result_fits_its_output() {
    let result = |change: fn(&mut Outcome)| refused(|it, _, _| change(it.result.as_mut().unwrap()));
    let pooled = |it: &mut Outcome| {
        it.output = "pooled".to_owned();
        it.pooling = None;
        it.normalise = false;
    };
    assert_eq!(result(pooled), [""; 0]);
    assert_eq!(result(|it| it.output = "no".to_owned()), ["/result/output"]);
    assert_eq!(result(|it| it.pooling = None), ["/result/output"]);
    assert_eq!(
        result(|it| it.output = "pooled".to_owned()),
        ["/result/pooling"]
    );
    let whole = refused(|it, _, _| {
        let result = it.result.as_mut().unwrap();
        pooled(result);
        result.output = "count".to_owned();
    });
    assert_eq!(whole, ["/result/output"], "whole numbers are no vector");
    assert_eq!(result(|it| it.softmax = true), ["/result/normalise"]);
    let top = |k| {
        refused(|it, _, _| {
            let result = it.result.as_mut().unwrap();
            pooled(result);
            result.top_k = std::num::NonZeroU32::new(k);
        })
    };
    assert_eq!(top(5), [""; 0]);
    assert_eq!(top(6), ["/result/top_k"]);
    let alone = refused(|it, infer, _| {
        it.text = None;
        infer.inputs.truncate(1);
    });
    assert_eq!(alone, ["/result/pooling"], "nothing says what a token is");
}

#[test]
fn labels_are_of_the_classes_that_are_ranked() {
    let labelled = |output: &str, names: usize| {
        refused(|it, _, _| {
            let result = it.result.as_mut().unwrap();
            (result.output, result.pooling) = ("pooled".to_owned(), None);
            (result.normalise, result.softmax) = (false, true);
            it.labels = Some(Labels {
                output: output.to_owned(),
                names: (0..names).map(|it| it.to_string()).collect(),
            });
        })
    };
    assert_eq!(labelled("pooled", 5), [""; 0]);
    assert_eq!(labelled("pooled", 4), ["/labels/names"]);
    assert_eq!(labelled("hidden", 3), ["/labels/output"]);
}

#[test]
fn a_version_says_what_it_gives() {
    let (manifest, infer) = (texts(), encoder());
    assert_eq!(manifest.text.as_ref().unwrap().tokens_max(&infer), Some(8));
    let mut result = manifest.result.unwrap();
    let dimensions = Given::Embedding { dimensions: 3 };
    assert_eq!(result.given(&infer, None), Some(dimensions));
    (result.output, result.top_k) = ("pooled".to_owned(), std::num::NonZeroU32::new(2));
    let classes = Given::Classes {
        classes: 5,
        top_k: Some(2),
    };
    assert_eq!(result.given(&infer, None), Some(classes));
}
