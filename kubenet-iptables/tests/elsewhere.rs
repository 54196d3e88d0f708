//! On systems other than Linux.
#![cfg(not(target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use kubenet_core::datapath::ErrorKind;
use kubenet_iptables::{IptablesBuilder, IptablesDatapath, Probe, Variant};

#[test]
fn it_is_unsupported_and_says_why() {
    let builder: IptablesBuilder = IptablesDatapath::builder().variant(Variant::Nft);
    let probed: Result<Probe, _> = builder.probe();
    for error in [probed.unwrap_err(), IptablesDatapath::probe().unwrap_err(), builder.build().unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("Linux"), "{error}");
    }
}

#[test]
fn settings_are_checked_all_the_same() {
    let error = IptablesDatapath::builder().chain_prefix("kube").build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
