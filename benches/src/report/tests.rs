use super::*;

fn report() -> Report {
    let mut report = Report::default();
    let slow = Record::new("first_program_5000x10_nft", 2.5, "s");
    report.add(
        slow.against(Measure::AtLeast(120.0), "classic \"layout\" & <cap>", Ratio::Gain)
            .aim(Goal::RatioAtLeast(40.0)),
    );
    let change = Record::new("one_change_20000_vs_100_nft", 40.0, "ms");
    report.add(
        change.against(30.0, "100", Ratio::Cost).aim(Goal::RatioAtMost(2.0)).aim(Goal::ValueAtMost(30.0)),
    );
    report.plot(Plot {
        file: "first_program".into(),
        title: "a < b & c".into(),
        x: "Services".into(),
        y: "s".into(),
        scale: Scale::Log,
        series: vec![Series {
            name: "classic".into(),
            points: vec![(100.0, 0.1), (20_000.0, 120.0)],
            bounds: vec![(20_000.0, 120.0)],
        }],
    });
    report
}

#[test]
fn results_are_a_list_of_objects_that_scripts_can_read() {
    let directory = tempfile::tempdir().unwrap();
    report().write(&directory.path().join("new")).unwrap();
    let json = fs::read(directory.path().join("new/results.json")).unwrap();
    let results: Vec<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(&json).unwrap();
    assert_eq!(results.len(), 2);
    for field in ["bench", "value", "unit", "baseline", "ratio"] {
        assert!(results.iter().all(|result| result.contains_key(field)), "{field}");
    }
    assert_eq!(results[0]["ratio"], 48.0);
    assert_eq!(results[0]["bound"], true);
    assert_eq!(results[0]["met"], true);
    assert_eq!(results[1]["bound"], false);
}

#[test]
fn a_plot_is_an_svg_that_names_its_lines() {
    let directory = tempfile::tempdir().unwrap();
    report().write(directory.path()).unwrap();
    let svg = fs::read_to_string(directory.path().join("first_program.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg:.300}");
    assert!(svg.contains("classic") && svg.contains("a &lt; b &amp; c"), "{svg:.900}");
    // One line of two points and no text that would end an element.
    assert_eq!(svg.matches("<svg").count(), 1);
    assert!(!svg.contains("a < b"));
}

#[test]
fn a_plot_of_nothing_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let mut report = report();
    report.plots[0].series.clear();
    report.write(directory.path()).unwrap();
    assert!(!directory.path().join("first_program.svg").exists());
    assert!(report.plots[0].draw().is_err());
}

#[test]
fn every_goal_counts_and_a_missing_figure_meets_none() {
    let report = report();
    assert_eq!(report.records()[1].met(), Some(false), "40 is above 30");
    let better = report.records()[1].clone().with_value(20.0);
    assert_eq!(better.met(), Some(true));
    assert_eq!(better.clone().with_value(Measure::Missing).met(), Some(false));
    assert_eq!(better.with_value(Measure::AtLeast(20.0)).met(), Some(false));
}

#[test]
fn the_table_says_what_is_a_bound_and_what_was_missed() {
    let table = report().table();
    let mut lines = table.lines().skip(2);
    let first = lines.next().unwrap();
    assert!(
        first.contains("≥ 120") && first.contains("≥ 48.0 × better") && first.ends_with("<cap>"),
        "{first}"
    );
    assert!(first.contains(": met"), "{first}");
    assert!(lines.next().unwrap().contains("MISSED"));
}
