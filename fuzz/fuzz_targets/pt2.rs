#![no_main]

libfuzzer_sys::fuzz_target!(
    init: comptoir_fuzz_targets::seeds::write_if_asked("pt2"),
    |input: &[u8]| comptoir_fuzz_targets::run("pt2", input)
);
