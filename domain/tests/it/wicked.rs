//! Archives made to do harm: each is refused for the reason it should be.

use comptoir_domain::program::{
    ArchiveError as E,
    archive::{CONFIG_BYTES_MAX, ENTRIES_MAX, JSON_DEPTH_MAX},
    stored::InvalidTensor as T,
};
use serde_json::{Value, json};
use zip::CompressionMethod;

use crate::fixture::{MEMORY, MLP, edit, edit_json, open, pack, patch, refusal, unpack, with_file};

#[test]
fn other_formats_are_told_apart_by_content() {
    assert!(matches!(
        refusal(b"\x80\x02ctorch._utils\n_rebuild"),
        E::Pickle
    ));
    assert!(matches!(refusal(b"\x80\x04\x95\x00\x00"), E::Pickle));
    assert!(matches!(refusal(b""), E::NotAnArchive));
    assert!(matches!(refusal(&[0_u8; 100]), E::NotAnArchive));
    let archive = |files: &[&str]| {
        let files = files
            .iter()
            .map(|name| ((*name).to_owned(), b"x".to_vec()))
            .collect();
        refusal(&pack(&files, CompressionMethod::Stored))
    };
    assert!(matches!(
        archive(&["model/data.pkl", "model/data/0", "model/version"]),
        E::Pickle
    ));
    assert!(matches!(
        archive(&["net/code/__torch__.py", "net/constants.pkl"]),
        E::TorchScript
    ));
    assert!(matches!(
        archive(&["net/constants.pkl", "net/data.pkl"]),
        E::TorchScript
    ));
    assert!(matches!(
        archive(&["net/data/aotinductor/model/lib.so"]),
        E::AotInductor
    ));
    assert!(matches!(
        archive(&["net/archive_format"]),
        E::Missing(_) | E::Unreadable { .. }
    ));
}

#[test]
fn sample_inputs_are_never_opened() {
    let junk = edit(MLP, "sample_inputs/model.pt", |file| {
        *file = b"\x80\x02cos\nsystem\n".to_vec();
    });
    assert_eq!(open(&junk).unwrap().program(), open(MLP).unwrap().program());
    // Even their checksum is not: nothing reads them.
    let at = MLP
        .windows(22)
        .position(|it| it == b"sample_inputs/model.pt")
        .unwrap()
        + 120;
    let mut broken = MLP.to_vec();
    broken[at] ^= 1;
    assert!(open(&broken).is_ok());
}

#[test]
fn pickled_weights_and_objects_are_refused() {
    let pickled = edit_json(MLP, "model_weights_config.json", |json| {
        json["config"]["head.bias"]["use_pickle"] = true.into();
    });
    assert!(
        matches!(refusal(&pickled), E::Tensor { name, reason: T::Pickled } if name == "head.bias")
    );
    let object = edit_json(MLP, "model_constants_config.json", |json| {
        json["config"]["thing"] = json!({"path_name": "custom_obj_0", "is_param": false, "use_pickle": false, "tensor_meta": null});
    });
    assert!(matches!(
        refusal(&object),
        E::Tensor {
            reason: T::NotATensor,
            ..
        }
    ));
}

#[test]
fn paths_that_could_mean_another_place_are_refused() {
    for name in [
        "../evil",
        "/etc/passwd",
        "mlp/../../evil",
        "mlp/data/weights/../x",
        "mlp\\evil",
        "C:/evil",
        "mlp//x",
        "mlp/extra/a\nb",
        "flat",
        "mlp/data/weights/evil.so",
        "other/extra/file",
        "mlp/models/second.json",
        "mlp/extra/",
    ] {
        assert!(
            matches!(refusal(&with_file(MLP, name, b"x")), E::Path(_)),
            "{name:?}"
        );
    }
    assert!(open(&with_file(MLP, "mlp/extra/notes.txt", b"x")).is_ok());
}

#[test]
fn one_name_stands_for_one_file() {
    let two = with_file(&with_file(MLP, "mlp/extra/a", b"x"), "mlp/extra/b", b"y");
    assert!(open(&two).is_ok());
    assert!(matches!(
        refusal(&patch(&two, b"mlp/extra/b", b"mlp/extra/a")),
        E::Zip(_)
    ));
}

#[test]
fn files_that_inflate_beyond_their_limit_are_refused() {
    let zeros = vec![b' '; usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1];
    let mut files = unpack(MLP);
    files
        .iter_mut()
        .find(|(name, _)| name.ends_with("weights_config.json"))
        .unwrap()
        .1 = zeros;
    let bomb = pack(&files, CompressionMethod::Deflated);
    assert!(bomb.len() < 400_000);
    assert!(matches!(
        refusal(&bomb),
        E::TooLarge {
            max: CONFIG_BYTES_MAX,
            ..
        }
    ));
}

#[test]
fn a_directory_that_lies_about_sizes_is_caught() {
    let size = 987_654_u32;
    let mut files = unpack(MLP);
    files
        .iter_mut()
        .find(|(name, _)| name.ends_with("models/model.json"))
        .unwrap()
        .1
        .resize(size as usize, b' ');
    let packed = pack(&files, CompressionMethod::Deflated);
    assert!(open(&packed).is_ok());
    let small = patch(&packed, &size.to_le_bytes(), &64_u32.to_le_bytes());
    assert!(matches!(
        refusal(&small),
        E::Inconsistent(_) | E::Zip(_) | E::Io(_)
    ));
    // Two files of almost 4 GiB each fit the limit, three do not; no byte of them exists.
    let mut many = MLP.to_vec();
    for name in ["mlp/extra/a", "mlp/extra/b", "mlp/extra/c"] {
        many = with_file(&many, name, &vec![b'z'; size as usize]);
    }
    let claimed = patch(&many, &size.to_le_bytes(), &0xffff_fff0_u32.to_le_bytes());
    assert!(matches!(refusal(&claimed), E::TooLarge { what, .. } if what.contains("inflated")));
}

#[test]
fn a_directory_that_lies_about_its_length_is_refused_before_it_is_read() {
    let packed = pack(&unpack(MLP), CompressionMethod::Stored);
    let mut many = packed.clone();
    let end = many.len() - 22;
    many[end + 8..end + 12].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    assert!(matches!(
        refusal(&many),
        E::TooMany {
            max: ENTRIES_MAX,
            ..
        }
    ));
    // The same in the 64-bit record that PyTorch writes.
    let mut many = MLP.to_vec();
    let end = many.len() - 22 - 20 - 56;
    many[end + 24..end + 40].fill(0x7f);
    assert!(matches!(
        refusal(&many),
        E::TooMany {
            max: ENTRIES_MAX,
            ..
        }
    ));
}

#[test]
fn bytes_around_the_archive_are_refused() {
    assert!(matches!(
        refusal(&[MLP, b"tail"].concat()),
        E::Inconsistent(_)
    ));
    assert!(matches!(
        refusal(&[b"PK\x03\x04 head", MLP].concat()),
        E::Inconsistent(_) | E::Zip(_)
    ));
    assert!(matches!(refusal(&MLP[..MLP.len() / 2]), E::Inconsistent(_)));
    let mut commented = pack(&unpack(MLP), CompressionMethod::Stored);
    let end = commented.len() - 2;
    commented[end..].copy_from_slice(&4_u16.to_le_bytes());
    commented.extend_from_slice(b"note");
    assert!(matches!(refusal(&commented), E::Inconsistent(_)));
}

#[test]
fn damaged_weights_are_caught_by_their_checksum() {
    let at = MLP
        .windows(21)
        .position(|it| it == b"mlp/data/weights/weig")
        .unwrap()
        + 200;
    let mut damaged = MLP.to_vec();
    damaged[at] ^= 1;
    let mut archive = open(&damaged).unwrap();
    assert!(archive.payload("data/weights/weight_0").is_err());
    assert!(archive.payload("data/weights/weight_1").is_ok());
    assert!(archive.payload("data/weights/weight_99").is_err());
}

#[test]
fn a_boolean_tensor_holds_booleans() {
    let retyped = |byte: u8| {
        let typed = edit_json(MLP, "model_weights_config.json", |json| {
            json["config"]["head.bias"]["tensor_meta"]["dtype"] = 12.into();
        });
        let typed = edit_json(&typed, "models/model.json", |json| {
            json["graph_module"]["graph"]["tensor_values"]["p_head_bias"]["dtype"] = 12.into();
        });
        edit(&typed, "weights/weight_5", |file| *file = vec![byte; 10])
    };
    assert!(
        open(&retyped(1))
            .unwrap()
            .payload("data/weights/weight_5")
            .is_ok()
    );
    assert!(
        open(&retyped(7))
            .unwrap()
            .payload("data/weights/weight_5")
            .is_err()
    );
}

#[test]
fn what_the_archive_says_of_itself_must_be_what_is_read() {
    for (path, content) in [
        ("byteorder", "big"),
        ("archive_format", "pt3"),
        ("archive_version", "9"),
    ] {
        let other = edit(MLP, path, |file| *file = content.into());
        assert!(matches!(refusal(&other), E::Unreadable { path: at, .. } if at == path));
    }
    let newer = edit_json(MLP, "models/model.json", |json| {
        json["schema_version"]["major"] = 9.into();
    });
    assert!(matches!(refusal(&newer), E::SchemaVersion(9)));
    let mut missing = unpack(MLP);
    missing.retain(|(name, _)| !name.ends_with("model_weights_config.json"));
    assert!(matches!(
        refusal(&pack(&missing, CompressionMethod::Stored)),
        E::Missing(_)
    ));
}

#[test]
fn json_that_is_too_deep_or_says_a_name_twice_is_refused() {
    let deep = edit(MLP, "models/model.json", |file| {
        let nest = [
            vec![b'['; JSON_DEPTH_MAX + 1],
            vec![b']'; JSON_DEPTH_MAX + 1],
        ]
        .concat();
        *file = [br#"{"extra":"#, nest.as_slice(), b",", &file[1..]].concat();
    });
    assert!(matches!(refusal(&deep), E::TooDeep(_)));
    let twice = edit(MLP, "models/model.json", |file| {
        let text = String::from_utf8(file.clone()).unwrap();
        let at = text.find(r#""tensor_values": {"#).unwrap() + r#""tensor_values": {"#.len();
        let entry = r#""relu": {"dtype": 7, "sizes": [], "strides": [], "storage_offset": {"as_int": 0}, "layout": 7}, "#;
        *file = [&text[..at], entry, &text[at..]].concat().into_bytes();
    });
    assert!(refusal(&twice).to_string().contains("stands twice"));
}

#[test]
fn values_that_are_not_data_do_not_parse() {
    for argument in [
        json!({"as_custom_obj": {"name": "x", "class_fqn": "y"}}),
        json!({"as_graph": {"name": "x", "graph": {}}}),
        json!({"as_operator": "os.system"}),
        json!({"as_scalar_type": 9}),
        json!({"as_tensor": {"name": "x"}, "as_int": 1}),
    ] {
        let other = edit_json(MLP, "models/model.json", |json| {
            json["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = argument.clone();
        });
        assert!(matches!(refusal(&other), E::Json { .. }), "{argument}");
    }
}

#[test]
fn tensors_that_reach_beyond_or_into_each_other_are_refused() {
    let reason = |archive: &[u8], name: &str, change: &dyn Fn(&mut Value)| {
        let other = edit_json(archive, "model_weights_config.json", |json| {
            change(&mut json["config"][name]);
        });
        match refusal(&other) {
            E::Tensor { reason, .. } => reason,
            error => panic!("{error}"),
        }
    };
    let bias = |change: &dyn Fn(&mut Value)| {
        reason(MLP, "head.bias", &|it| change(&mut it["tensor_meta"]))
    };
    assert!(matches!(
        bias(&|it| it["sizes"][0] = json!({"as_int": 11})),
        T::OutOfBounds {
            needed: 44,
            available: 40
        }
    ));
    assert!(matches!(
        bias(&|it| it["storage_offset"] = json!({"as_int": 1})),
        T::OutOfBounds { .. }
    ));
    assert!(matches!(
        bias(&|it| it["strides"][0] = json!({"as_int": i64::MAX})),
        T::Shape
    ));
    assert!(matches!(
        bias(&|it| it["strides"][0] = json!({"as_int": 0})),
        T::SelfOverlap
    ));
    assert!(matches!(
        bias(&|it| it["strides"][0] = json!({"as_int": -1})),
        T::Shape
    ));
    assert!(matches!(
        bias(&|it| it["sizes"][0] = json!({"as_expr": {"expr_str": "Integer(10)"}})),
        T::Shape
    ));
    assert!(matches!(
        bias(&|it| it["sizes"][0] = json!({"as_int": 1_u64 << 40})),
        T::TooLarge
    ));
    assert!(matches!(bias(&|it| it["strides"] = json!([])), T::Shape));
    let path = |name: &str| reason(MLP, "head.bias", &|it| it["path_name"] = name.into());
    assert!(matches!(path("weight_77"), T::NoPayload(_)));
    assert!(matches!(path("../constants/tensor_0"), T::Name));
    let shifted = reason(MEMORY, "high", &|it| {
        it["tensor_meta"]["storage_offset"] = json!({"as_int": 5});
    });
    assert!(matches!(shifted, T::Overlap));
}

#[test]
fn a_stored_tensor_must_have_the_shape_the_graph_recorded() {
    let other = edit_json(MLP, "models/model.json", |json| {
        json["graph_module"]["graph"]["tensor_values"]["p_hidden_weight"]["sizes"][1] =
            json!({"as_int": 1});
    });
    assert!(refusal(&other).to_string().contains("hidden.weight"));
}

#[test]
fn names_that_nobody_can_keep_are_refused() {
    let renamed = |to: &str| {
        edit(MLP, "models/model.json", |file| {
            let text = String::from_utf8(file.clone()).unwrap();
            *file = text.replace("\"relu\"", to).into_bytes();
        })
    };
    assert!(open(&renamed("\"relu_0\"")).is_ok());
    for name in ["\"\"", r#""a\u0000b""#, &format!("\"{}\"", "a".repeat(256))] {
        let error = refusal(&renamed(name));
        assert!(error.to_string().contains("the name of a value"), "{error}");
    }
    let version = edit_json(MLP, "models/model.json", |json| {
        json["torch_version"] = "2.13\u{0}".into();
    });
    let error = refusal(&version);
    assert!(
        error.to_string().contains("the version of PyTorch"),
        "{error}"
    );
}
