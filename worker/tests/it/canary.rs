//! Numeric classes are measured, not claimed.

use comptoir_domain::job::Device;
use comptoir_worker::{
    canary::Class,
    engine::{Description, Event, Launcher, Task},
    facts::LIBTORCH_EXPECTED,
};

use crate::harness::{LIMITS, launcher};

async fn ask(launcher: &Launcher, task: Task, threads: u16) -> Event {
    let scratch = tempfile::tempdir().unwrap();
    let description = Description {
        task,
        device: Device::Cpu,
        threads,
    };
    launcher
        .spawn(LIMITS, description, scratch.path())
        .unwrap()
        .last()
        .await
}

async fn class(launcher: &Launcher, threads: u16) -> Class {
    match ask(launcher, Task::Canary, threads).await {
        Event::Class(class) => class,
        other => panic!("no class: {other:?}"),
    }
}

#[tokio::test]
async fn a_machine_is_in_one_class_and_other_instructions_make_another() {
    let native = class(&launcher(), 1).await;
    assert_eq!(native, class(&launcher(), 1).await);
    let name = native.to_string();
    assert!(name.starts_with("cpu-1t-") && name.len() == 23, "{name}");
    let plain = class(&launcher().with("ATEN_CPU_CAPABILITY", "default"), 1).await;
    assert_ne!(native.digest, plain.digest);
    assert_eq!(
        plain,
        class(&launcher().with("ATEN_CPU_CAPABILITY", "default"), 1).await
    );
    assert_ne!(
        native.to_string(),
        class(&launcher(), 2).await.to_string(),
        "threads belong to the class"
    );
}

#[tokio::test]
async fn facts_name_the_libtorch_that_is_used() {
    let Event::Facts(facts) = ask(&launcher(), Task::Facts, 1).await else {
        panic!("no facts")
    };
    assert_eq!(facts.libtorch, LIBTORCH_EXPECTED);
    assert!(facts.cpu_threads >= 1);
    assert_eq!(
        facts.cuda_missing.is_none(),
        !facts.cuda_memory_bytes.is_empty()
    );
}
