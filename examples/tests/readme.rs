//! The README's embedding example is short, and one line of it chooses the mechanism. That it compiles is
//! tested as a doctest of this package.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

#[test]
fn the_embedding_example_is_short_and_one_line_chooses_the_datapath() {
    let readme = include_str!("../../README.md");
    let code = readme.split("```rust,no_run\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(code.lines().count() <= 30, "{} lines", code.lines().count());
    let chooses = |line: &&str| !line.trim_start().starts_with("//") && line.contains("kubenet_ebpf");
    assert_eq!(code.lines().filter(chooses).count(), 1);
}
