//! A child that misbehaves costs its attempt and nothing else.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    process::{Command, Stdio},
    time::Duration,
};

use comptoir_domain::{
    digest::Sha256,
    job::{Cause, InferenceSpec, JobSpec, TensorRef},
    program::graph::ScalarType,
    tensors::{self, TensorView},
};
use comptoir_worker::engine::{Code, Event, Launcher, Limits};
use tempfile::TempDir;

use crate::harness::{Bench, LIMITS, cases, collect, convnet, inference};

/// A child that is a shell script.
pub fn script(body: &str) -> (TempDir, Launcher) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("child");
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    (folder, Launcher::new(path))
}

async fn last_of(body: &str, limits: Limits) -> (Bench, Event) {
    let mut bench = Bench::new();
    let spec = convnet(&mut bench);
    let (_folder, launcher) = script(body);
    let last = bench
        .start_with(&launcher, bench.task(JobSpec::Training(spec)), limits)
        .last()
        .await;
    (bench, last)
}

async fn failure_of(body: &str, limits: Limits) -> (Code, Cause, String) {
    match last_of(body, limits).await.1 {
        Event::Failed(failure) => (failure.code, failure.cause(), failure.detail),
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test]
async fn a_child_that_crashes_fails_its_attempt() {
    let (code, cause, detail) = failure_of("echo 'last words' >&2; kill -SEGV $$", LIMITS).await;
    assert_eq!((code, cause), (Code::Crashed, Cause::Worker));
    assert!(detail.contains("last words"), "{detail}");
    assert_eq!(failure_of("exit 0", LIMITS).await.0, Code::Crashed);
    assert_eq!(failure_of("kill -XCPU $$", LIMITS).await.0, Code::TimeLimit);
    assert_eq!(
        failure_of("kill -KILL $$", LIMITS).await.0,
        Code::OutOfMemory
    );
}

#[tokio::test]
async fn a_child_that_talks_nonsense_is_ended() {
    for body in [
        "echo what is this; sleep 60",
        "printf '\\000\\000\\000\\002{}'; sleep 60",
    ] {
        assert_eq!(failure_of(body, LIMITS).await.0, Code::Protocol, "{body}");
    }
    let forged = r#"{"type":"done","outputs":[{"name":"weights","path":"/etc/passwd","sha256":"SHA","bytes":1}]}"#
        .replace("SHA", &Sha256::of(b"").to_string());
    let length = format!("\\000\\000\\000\\{:03o}", forged.len());
    let (code, _, detail) = failure_of(
        &format!("printf '{length}'; printf '%s' '{forged}'; sleep 60"),
        LIMITS,
    )
    .await;
    assert_eq!(code, Code::Protocol, "{detail}");
    assert!(detail.contains("outside"), "{detail}");
}

#[tokio::test]
async fn a_child_that_hangs_is_ended_with_all_it_started() {
    let limits = Limits {
        wall: Duration::from_millis(300),
        ..LIMITS
    };
    let (bench, last) = last_of("sleep 1000 & echo $! >started; sleep 1000", limits).await;
    assert!(
        matches!(&last, Event::Failed(failure) if failure.code == Code::TimeLimit),
        "{last:?}"
    );
    let started = fs::read_to_string(bench.scratch.path().join("started")).unwrap();
    let is_gone = || {
        let state = fs::read_to_string(format!("/proc/{}/stat", started.trim()));
        let state = state.unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    };
    // It was killed; the kernel may take a moment on a busy machine.
    for _ in 0..200 {
        if is_gone() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still there: {started}");
}

#[tokio::test]
async fn a_child_sees_nothing_of_the_environment_but_what_it_needs() {
    let (bench, _) = last_of("/usr/bin/env >environment", LIMITS).await;
    let environment = fs::read_to_string(bench.scratch.path().join("environment")).unwrap();
    assert!(
        std::env::var_os("CARGO_MANIFEST_DIR").is_some(),
        "something to hide"
    );
    for (name, _) in environment.lines().filter_map(|line| line.split_once('=')) {
        let is_known = [
            "HOME",
            "TMPDIR",
            "LANG",
            "PWD",
            "_",
            "OLDPWD",
            "SHLVL",
            "LD_LIBRARY_PATH",
        ]
        .contains(&name)
            || [
                "OMP_", "MKL_", "CUBLAS_", "NVIDIA_", "CUDA_", "ATEN_", "ONEDNN_",
            ]
            .iter()
            .any(|it| name.starts_with(it));
        assert!(is_known, "{name}");
    }
    assert!(environment.contains("OMP_NUM_THREADS=1\n"));
}

#[tokio::test]
async fn a_job_that_takes_too_long_is_ended() {
    let mut bench = Bench::new();
    let mut spec = convnet(&mut bench);
    spec.epochs = 10_000;
    let limits = Limits {
        wall: Duration::from_secs(3),
        ..LIMITS
    };
    let events = collect(bench.start(bench.task(JobSpec::Training(spec)), limits)).await;
    let Some(Event::Failed(failure)) = events.last() else {
        panic!("{:?}", events.last())
    };
    assert_eq!(
        (failure.code, failure.cause()),
        (Code::TimeLimit, Cause::Worker)
    );
}

/// A wide batch: 60,000 images through the convolutional net at once.
fn wide(bench: &mut Bench) -> InferenceSpec {
    let case = cases("inference")
        .into_iter()
        .find(|case| case["name"] == "convnet_inference")
        .unwrap();
    let rows = 60_000_u64;
    let zeros = vec![0; usize::try_from(rows).unwrap() * 256];
    let images = TensorView {
        name: "images",
        dtype: ScalarType::F32,
        shape: &[rows, 1, 8, 8],
        data: &zeros,
    };
    let blob = bench.blob(&tensors::to_bytes([images]).unwrap());
    let tensor = "images".to_owned();
    InferenceSpec {
        inputs: [(
            "x".to_owned(),
            TensorRef {
                blob,
                dataset_version: None,
                tensor,
            },
        )]
        .into(),
        batch_size: 60_000,
        ..inference(bench, &case)
    }
}

#[tokio::test]
async fn a_job_that_eats_memory_is_ended() {
    let mut bench = Bench::new();
    let spec = wide(&mut bench);
    let task = bench.task(JobSpec::Inference(spec));
    // Its first convolution alone makes 245 MB.
    let limits = Limits {
        memory_bytes: 128 << 20,
        ..LIMITS
    };
    let last = bench.start(task, limits).last().await;
    let Event::Failed(failure) = last else {
        panic!("not ended: {last:?}")
    };
    assert_eq!(
        (failure.code, failure.cause()),
        (Code::OutOfMemory, Cause::Worker),
        "{failure}"
    );
}

#[tokio::test]
async fn a_job_runs_in_the_memory_that_it_was_quoted() {
    let mut bench = Bench::new();
    let mut training = convnet(&mut bench);
    training.batch_size = 150;
    let inference = wide(&mut bench);
    for spec in [JobSpec::Training(training), JobSpec::Inference(inference)] {
        let memory_bytes = bench.quoted_memory(&spec);
        let limits = Limits {
            memory_bytes,
            ..LIMITS
        };
        let last = bench.start(bench.task(spec), limits).last().await;
        assert!(
            matches!(last, Event::Done { .. }),
            "{memory_bytes} bytes: {last:?}"
        );
    }
}

#[tokio::test]
async fn a_cancelled_job_stops_at_its_next_step() {
    let mut bench = Bench::new();
    let mut spec = convnet(&mut bench);
    spec.epochs = 10_000;
    let mut job = bench.start(bench.task(JobSpec::Training(spec)), LIMITS);
    let handle = job.handle();
    loop {
        match job.next().await {
            Some(Event::Metrics(_)) => break,
            Some(event) if !event.is_last() => {}
            other => panic!("ended before it was cancelled: {other:?}"),
        }
    }
    handle.cancel();
    assert_eq!(job.last().await, Event::Cancelled);
}

#[tokio::test]
async fn a_job_that_nobody_listens_to_is_ended() {
    let mut bench = Bench::new();
    let spec = convnet(&mut bench);
    let (_folder, launcher) = script("echo $$ >child; sleep 1000");
    let job = bench.start_with(&launcher, bench.task(JobSpec::Training(spec)), LIMITS);
    let child = bench.scratch.path().join("child");
    let started = async {
        while !fs::read_to_string(&child).is_ok_and(|text| text.ends_with('\n')) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), started)
        .await
        .expect("the child starts");
    drop(job);
    let gone = async {
        loop {
            let pid = fs::read_to_string(&child).unwrap_or_default();
            if !pid.is_empty() && !fs::exists(format!("/proc/{}", pid.trim())).unwrap() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .expect("the child ends with its job");
}

#[test]
fn a_child_ends_when_its_parent_lets_go_of_it() {
    let mut bench = Bench::new();
    let limits = LIMITS.arguments(comptoir_domain::job::Device::Cpu, 1, bench.scratch.path());
    let binary = env!("CARGO_BIN_EXE_comptoir-worker");
    let mut child = Command::new(binary)
        .arg("child")
        .args(limits)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut spec = convnet(&mut bench);
    spec.epochs = 10_000;
    let mut task = bench.task(JobSpec::Training(spec));
    task.blobs
        .values_mut()
        .for_each(|path| *path = bench.scratch.path().join(&*path));
    let order =
        comptoir_worker::engine::message::Order::Start(comptoir_worker::engine::Description {
            task: comptoir_worker::engine::Task::Job(Box::new(task)),
            device: comptoir_domain::job::Device::Cpu,
            threads: 1,
        });
    let frame = comptoir_worker::engine::message::encode(&order).unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), &frame).unwrap();
    let mut header = [0; 4];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut header).unwrap();
    drop(child.stdin.take());
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(nix::libc::SIGKILL), "{status}");
}
