//! Compiles the C++ shim against libtorch and tells the linker where libtorch is, now and at run time.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    for source in ["src/aten/bridge.rs", "shim"] {
        println!("cargo::rerun-if-changed={source}");
    }
    match libtorch() {
        Ok(libtorch) => build(&libtorch),
        Err(reason) => println!("cargo::error={reason}"),
    }
}

fn libtorch() -> Result<PathBuf, String> {
    let told = std::env::var_os("LIBTORCH").ok_or(
        "the worker needs libtorch 2.13.0: run `make setup`, or set LIBTORCH to its folder",
    )?;
    let headers = Path::new(&told).join("include/ATen/core/Tensor.h");
    if !headers.exists() {
        let told = Path::new(&told).display();
        return Err(format!(
            "the worker needs libtorch 2.13.0, and {told} holds none: run `make setup`, or set LIBTORCH to its folder"
        ));
    }
    // The real folder: the binary must find its libraries when the link that led here has gone.
    Path::new(&told)
        .canonicalize()
        .map_err(|error| format!("LIBTORCH cannot be opened: {error}"))
}

fn build(libtorch: &Path) {
    let include = libtorch.join("include");
    cxx_build::bridge("src/aten/bridge.rs")
        .files([
            "shim/shim.cpp",
            "shim/arguments.cpp",
            "shim/tape.cpp",
            "shim/update.cpp",
        ])
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // As system headers, so that only warnings of the shim itself are shown.
        .flag(format!("-isystem{}", include.display()))
        .flag(format!(
            "-isystem{}",
            include.join("torch/csrc/api/include").display()
        ))
        .compile("comptoir_shim");
    let lib = libtorch.join("lib");
    println!("cargo::rustc-link-search=native={}", lib.display());
    println!("cargo::rustc-link-lib=dylib=torch_cpu");
    println!("cargo::rustc-link-lib=dylib=c10");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
