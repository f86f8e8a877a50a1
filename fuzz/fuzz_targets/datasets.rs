#![no_main]

libfuzzer_sys::fuzz_target!(
    init: comptoir_fuzz_targets::seeds::write_if_asked("datasets"),
    |input: &[u8]| comptoir_fuzz_targets::run("datasets", input)
);
