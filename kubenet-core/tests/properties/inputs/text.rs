//! Texts: files, addresses, ranges.

use std::net::IpAddr;

use ipnet::IpNet;
use kubenet_core::kubernetes::{Manifests, parse_address, parse_cidr};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

use super::values::{TEXTS, any_valid};
use crate::cases;

/// What does harm in YAML or JSON.
const TOKENS: &[&str] = &[
    "1e999",
    "-0",
    "0x1F",
    "1_000",
    "00",
    ".5",
    "+1",
    "NaN",
    ".inf",
    "99999999999999999999999999999999999999999",
    "0.1e-400",
    "18446744073709551616",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "'",
    "\"",
    "\\",
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "!!binary ",
    "!<x> ",
    "? ",
    ": ",
    "- ",
    "|\n",
    ">-\n",
    "#",
    "%YAML 1.2\n",
    "---\n",
    "...\n",
    "\t",
    "\r",
    "\u{feff}",
    "\u{85}",
    "\u{2028}",
    "{",
    "}",
    "[",
    "]",
    ",",
    "{a: &a [*a,*a]}",
    "yes",
    "~",
    "\n\n",
    "\u{0}",
];

fn load(name: &str, text: &str) -> Result<(), TestCaseError> {
    if let Err(error) = Manifests::parse(name, text) {
        prop_assert!(!error.problems().is_empty());
        prop_assert!(error.to_string().starts_with(name));
    }
    Ok(())
}

fn any_address_text() -> impl Strategy<Value = String> {
    let number = || prop_oneof![3 => (0..300u16).prop_map(|n| n.to_string()), 1 => (0..10u8).prop_map(|n| format!("{n:03}"))];
    let v4 = vec(number(), 1..6).prop_map(|parts| parts.join("."));
    let v6 = vec("[0-9a-fA-F]{0,5}", 1..10).prop_map(|parts| parts.join(":"));
    prop_oneof![
        2 => v4.clone(),
        2 => v6.clone(),
        1 => v4.clone().prop_map(|v4| format!("::ffff:{v4}")),
        1 => (v6, v4).prop_map(|(v6, v4)| format!("{v6}:{v4}")),
        2 => any::<IpAddr>().prop_map(|address| address.to_string()),
        1 => select(TEXTS).prop_map(str::to_owned),
        1 => "\\PC{0,20}",
    ]
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_file_with_harmful_tokens_is_taken_or_refused(
        object in any_valid(),
        tokens in vec((any::<Index>(), select(TOKENS)), 1..5),
    ) {
        let mut text: Vec<char> = serde_json::to_string_pretty(&object).unwrap().chars().collect();
        for (at, token) in tokens {
            let at = at.index(text.len() + 1);
            text.splice(at..at, token.chars());
        }
        let text: String = text.into_iter().collect();
        for name in ["m.json", "m.yaml", "m"] {
            load(name, &text)?;
        }
    }

    /// One of the two would be lost.
    #[test]
    fn a_field_that_stands_twice_is_refused(object in any_valid(), at in any::<Index>(), value in select(TEXTS)) {
        let text = object.to_string();
        let places: Vec<_> = text.match_indices("{\"").map(|(i, _)| i + 1).collect();
        let at = places[at.index(places.len())];
        let key = &text[at..at + 2 + text[at + 1..].find('"').unwrap()];
        let doubled = format!("{}{key}:{},{}", &text[..at], serde_json::Value::from(value), &text[at..]);
        for name in ["m.json", "m.yaml"] {
            prop_assert!(Manifests::parse(name, &doubled).is_err(), "{}", doubled);
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed(
        depth in prop_oneof![1..200usize, 1_000..20_000usize],
        open in select(&["[", "{a: ", "{\"a\":", "- ", "? ", "[? ", "{? ", "!t [", "&a [", "a: {", "[a, ", "- - "][..]),
        close in select(&["", "]", "}"][..]),
    ) {
        let text = open.repeat(depth) + "x" + &close.repeat(depth);
        for text in [text.clone(), format!("apiVersion: v1\nkind: Service\nspec: {text}")] {
            for name in ["m.json", "m.yaml", "m"] {
                load(name, &text)?;
            }
        }
    }

    #[test]
    fn o4_what_is_printed_of_an_address_reads_the_same(text in any_address_text()) {
        if let Ok(address) = parse_address(&text) {
            prop_assert_eq!(address, address.to_canonical());
            prop_assert_eq!(parse_address(&address.to_string()), Ok(address));
        }
        // Whatever the standard library reads is read, and read the same.
        if let Ok(address) = text.parse::<IpAddr>() {
            prop_assert_eq!(parse_address(&text), Ok(address.to_canonical()));
        }
    }

    #[test]
    fn r1_what_is_printed_of_a_range_reads_the_same(
        address in any_address_text(),
        length in prop_oneof![3 => (0..130u16).prop_map(|n| n.to_string()), 1 => "[0-9a+ -]{0,4}"],
        space in select(&["", " ", "\t", "\n", "\u{a0}"][..]),
    ) {
        let text = format!("{space}{address}/{length}{space}");
        if let Ok(range) = parse_cidr(&text) {
            prop_assert_eq!(range, range.trunc());
            prop_assert_eq!(parse_cidr(&range.to_string()), Ok(range));
            // It holds the address that it was written with.
            prop_assert!(range.contains(&parse_address(&address).unwrap()));
        }
        // Whatever the standard library reads is read, and read the same.
        let digits = length.bytes().all(|digit| digit.is_ascii_digit());
        if let (Ok(address), Ok(length), true) = (address.parse::<IpAddr>(), length.parse::<u8>(), digits)
            && address == address.to_canonical()
        {
            prop_assert_eq!(parse_cidr(&text).ok(), IpNet::new(address, length).ok().map(|net| net.trunc()));
        }
    }
}
