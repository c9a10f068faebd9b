#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aip_decoders::agent_card(bytes));
