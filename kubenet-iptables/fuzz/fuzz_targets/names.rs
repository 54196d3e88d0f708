//! Whatever a Service is called, its name changes comments and nothing else.
#![no_main]

#[path = "../../tests/common/naming.rs"]
mod naming;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|parts: (String, String, String)| {
    let (namespace, service, port) = parts;
    naming::check(&naming::named(&namespace, &service, &port));
});
