//! Models by the command line, against a service that runs.

use serde_json::{Value, json};

use crate::{
    guardian_world::World,
    harness::checkout,
    terminal::{NOT_FOUND, REFUSED, Terminal},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_creator_publishes_prices_shows_and_retires_a_model_and_others_find_it() {
    let world = World::start().await;
    let person = world.person("person", 0).await;
    let key = world.write_key(&person.wallet);
    let [creator, other] = ["creator", "other"].map(|name| Terminal {
        world: &world,
        name,
    });
    creator.done(&["login", "--wallet", "--key-file", &key]);
    other.done(&["signup", "--email", "other@example.org"]);

    let card = ["--name", "digits", "--title", "Digits", "--licence", "MIT"];
    let made = creator.done(&[&["model", "create"], &card[..]].concat());
    let model = made["id"].as_str().unwrap();
    let show = ["model", "visibility", model, "public"];
    creator.refused(&show, REFUSED, "no_version");

    let labels = world.path("labels");
    std::fs::write(&labels, "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n").unwrap();
    let program = checkout().join("examples/digits/mlp.pt2");
    let program = program.to_str().unwrap();
    let publish = ["model", "publish", model, "--infer", program];
    let plain = creator.done(&publish);
    let output = plain["schema"]["outputs"][0]["name"].as_str().unwrap();
    let labelled = ["--labels", labels.to_str().unwrap(), "--labelled", output];
    let version = creator.done(&[&publish[..], &labelled].concat());
    assert_eq!(version["number"], 2);
    assert_eq!(version["manifest"]["labels"]["names"][9], "9");
    creator.refused(&publish, REFUSED, "model_version_exists");

    let data = "0x00000000000000000000000000000000000000dd=1";
    let shares = ["--worker-ppm", "200000", "--payee", data];
    let price = ["model", "price", model, "--call-nano", "7000000000"];
    let price = creator.done(&[&price[..], &shares].concat());
    assert_eq!(price["worker_ppm"], 200_000);
    assert_eq!(price["payees"][0]["weight"], 1);
    other.refused(&["model", "show", model], NOT_FOUND, "not_found");
    assert_eq!(creator.done(&show)["visibility"], "public");

    let listed = other.done(&["model", "list"]);
    assert_eq!(listed["data"][0]["id"], model);
    assert_eq!(other.done(&["model", "list", "--own"])["data"], json!([]));
    let shown = other.done(&["model", "show", model]);
    assert_eq!(shown["versions"][0]["digest"], version["digest"]);
    assert_eq!(shown["prices"][0]["tariff"]["call_nano"], "7000000000");
    let id = version["id"].as_str().unwrap();
    let deprecate = ["model", "deprecate", model, id, "--message", "old"];
    let soon = [&deprecate[..], &["--retires-at", "2020-01-01T00:00:00Z"]].concat();
    creator.refused(&soon, REFUSED, "/retires_at");
    assert_eq!(creator.done(&deprecate)["deprecation"], "old");
    let back = creator.done(&["model", "undeprecate", model, id]);
    assert_eq!(back["deprecation"], Value::Null);
    let edited = creator.done(&["model", "edit", model, "--title", "Digits again"]);
    assert_eq!(edited["title"], "Digits again");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creator_publishes_a_model_of_texts_with_a_manifest_and_files_beside_it() {
    let world = World::start().await;
    let creator = Terminal {
        world: &world,
        name: "creator",
    };
    creator.done(&["signup", "--email", "creator@example.org"]);
    let card = ["--name", "reader", "--title", "Reader", "--licence", "MIT"];
    let made = creator.done(&[&["model", "create"], &card[..]].concat());
    let model = made["id"].as_str().unwrap();
    let program = checkout().join("examples/digits/encoder.pt2");
    let publish = [
        "model",
        "publish",
        model,
        "--infer",
        program.to_str().unwrap(),
    ];
    let plain = creator.done(&publish);
    let output = &plain["schema"]["outputs"][0]["name"];

    let [tokenizer, manifest] = ["tokenizer.json", "manifest.json"].map(|it| world.path(it));
    let words = json!({ "type": "WordLevel", "vocab": { "a": 0, "b": 1 }, "unk_token": "a" });
    std::fs::write(&tokenizer, json!({ "model": words }).to_string()).unwrap();
    let said = json!({
        "programs": { "infer": "0".repeat(64) },
        "text": { "ids": "tokens", "pad_id": 0 },
        "result": { "output": output, "pooling": "mean" },
    });
    std::fs::write(&manifest, said.to_string()).unwrap();
    let beside = ["--manifest", manifest.to_str().unwrap()];
    let beside = [
        &publish[..],
        &beside,
        &["--tokenizer", tokenizer.to_str().unwrap()],
    ]
    .concat();
    let version = creator.done(&beside);
    assert_eq!(
        version["manifest"]["programs"],
        plain["manifest"]["programs"]
    );
    assert_eq!(version["schema"]["text"]["tokens_max"], 16);
    assert_eq!(version["schema"]["result"]["dimensions"], 17);

    std::fs::write(&manifest, "[]").unwrap();
    creator.refused(&beside, 1, "is no manifest");
    world.stop().await;
}
