use super::*;

#[test]
fn a_label_has_1_to_63_lower_case_letters_digits_and_inner_hyphens() {
    for name in ["a", "0", "web", "web-1", "0-0", &"x".repeat(63)] {
        assert_eq!(validate_label(name), Ok(()), "{name}");
    }
    for name in ["", "-", "-a", "a-", "A", "a.b", "a b", "a_b", "é", "a\n", "a\0", &"x".repeat(64)] {
        assert!(validate_label(name).is_err(), "{name}");
    }
}

#[test]
fn a_subdomain_is_labels_joined_by_dots_of_at_most_253_characters() {
    for name in ["a", "a.b", "web-1.example", "0.0", &"x".repeat(253)] {
        assert_eq!(validate_name(name), Ok(()), "{name}");
    }
    for name in ["", ".", "a.", ".a", "a..b", "a.-b", "a-.b", "A.b", "a/b", &"x".repeat(254)] {
        assert!(validate_name(name).is_err(), "{name}");
    }
}

#[test]
fn an_object_name_tells_which_part_is_wrong() {
    assert_eq!(ObjectName::new("EndpointSlice", "demo", "web.1").unwrap().to_string(), "demo/web.1");
    assert_eq!(
        ObjectName::new("EndpointSlice", "de.mo", "web").unwrap_err().to_string(),
        "EndpointSlice de.mo/web: metadata.namespace: \"de.mo\": must consist of lower-case letters, digits and '-', \
         and begin and end with a letter or digit (RFC 1123)"
    );
    assert_eq!(
        ObjectName::new("EndpointSlice", "demo", "").unwrap_err().to_string(),
        "EndpointSlice demo/: metadata.name: must be set"
    );
}
