//! What others wrote, as people read it, and read back.

use lockring_proto::{Shown, read_shown, visible_json};
use proptest::collection::vec;
use proptest::prelude::*;

/// Bytes as somebody who means harm chooses them, and as chance does.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let ends = "\u{202e}\u{2066}\u{feff}\u{ad}\u{301}\u{85}\u{e0041}\u{3164}\u{1f600}\u{5d0}";
    let text = vec(prop_oneof![any::<char>(), proptest::char::range('\0', '\u{ff}')], 0..20);
    let sly: Vec<char> = ends.chars().chain(" -\\x\x1b".chars()).collect();
    let sly = vec(proptest::sample::select(sly), 0..9);
    prop_oneof![
        vec(any::<u8>(), 0..40),
        text.prop_map(|chars| String::from_iter(chars).into_bytes()),
        sly.prop_map(|chars: Vec<char>| String::from_iter(chars).into_bytes()),
    ]
}

proptest! {
    #[test]
    fn what_is_shown_is_read_and_names_the_same(bytes in bytes()) {
        let shown = Shown(&bytes).to_string();
        prop_assert_eq!(read_shown(shown.as_bytes()), Ok(bytes), "{}", shown);
    }

    #[test]
    fn what_is_shown_is_one_line_of_visible_text(bytes in bytes()) {
        let shown = Shown(&bytes).to_string();
        for c in shown.chars() {
            prop_assert!(!c.is_control() && (c == ' ' || !c.is_whitespace()), "{:?}", shown);
            let as_it_is = format!("a{c}").escape_debug().count() == 2;
            prop_assert!(as_it_is || "'\"\\".contains(c), "{:?}", shown);
        }
        let steers = |c| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{61c}' | '\u{feff}' | '\u{ad}');
        prop_assert!(!shown.contains(steers), "{:?}", shown);
        prop_assert!(!shown.starts_with(['-', ' ']) && !shown.contains("  "), "{:?}", shown);
        prop_assert!(!shown.ends_with(' '), "{:?}", shown);
    }

    /// Two that differ are seen to differ.
    #[test]
    fn no_two_look_alike_by_an_escape(one in bytes(), other in bytes()) {
        prop_assert_eq!(one == other, Shown(&one).to_string() == Shown(&other).to_string());
    }

    #[test]
    fn any_text_is_read_or_refused(text in vec(any::<u8>(), 0..40)) {
        if let Ok(read) = read_shown(&text) {
            prop_assert!(read.len() <= text.len());
        }
    }
}

#[test]
fn each_kind_of_harm_is_written_out() {
    for (bytes, shown) in [
        (&b""[..], ""),
        (b"plain/key-1", "plain/key-1"),
        ("gr\u{fc}n \u{65e5}\u{672c} \u{1f600}".as_bytes(), "gr\u{fc}n \u{65e5}\u{672c} \u{1f600}"),
        ("cafe\u{301}".as_bytes(), "cafe\u{301}"),
        ("\u{301}e".as_bytes(), r"\xcc\x81e"),
        (b"\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        (b"a\nb\tc\r\0\x7f", r"a\x0ab\x09c\x0d\x00\x7f"),
        ("\u{9b}31m".as_bytes(), r"\xc2\x9b31m"),
        ("a\u{202e}b\u{2066}".as_bytes(), r"a\xe2\x80\xaeb\xe2\x81\xa6"),
        ("a\u{200b}b\u{feff}".as_bytes(), r"a\xe2\x80\x8bb\xef\xbb\xbf"),
        ("a\u{a0}b\u{2028}c".as_bytes(), r"a\xc2\xa0b\xe2\x80\xa8c"),
        ("\u{3164}\u{2764}\u{fe0f}".as_bytes(), "\\xe3\\x85\\xa4\u{2764}\\xef\\xb8\\x8f"),
        (b"job\xff\xfe", r"job\xff\xfe"),
        (b"\xe2\x80", r"\xe2\x80"),
        (br"a\x41", r"a\\x41"),
        (b"-x9", r"\x2dx9"),
        (b" a b  c ", r"\x20a b \x20c\x20"),
        (b" ", r"\x20"),
    ] {
        assert_eq!(Shown(bytes).to_string(), shown);
        assert_eq!(read_shown(shown.as_bytes()).as_deref(), Ok(bytes), "{shown}");
    }
}

#[test]
fn a_backslash_that_begins_no_escape_is_refused() {
    for text in [r"\", r"a\", r"\t", r"\x", r"\x4", r"\xg0", r"\x0g", r"\X41", r"\u{41}", r"\\\"] {
        let error = read_shown(text.as_bytes()).expect_err(text);
        assert_eq!(error.text, text.as_bytes());
        assert!(error.to_string().contains(r"write \\ for a backslash"), "{error}");
    }
    assert_eq!(read_shown(br"\xFf\xfF").as_deref(), Ok(&b"\xff\xff"[..]));
}

/// What JSON may carry raw is escaped all the same where people would not see it.
#[test]
fn json_stays_the_same_text_and_becomes_visible() {
    for raw in ["\u{7f}", "\u{9b}31m", "a\u{202e}b", "\u{2028}", "\u{feff}", "\u{e0041}", "\u{a0}"]
    {
        let json = format!("[\"{raw}\"]");
        let visible = visible_json(&json);
        assert!(visible.is_ascii() && visible.contains("\\u"), "{visible}");
    }
    for plain in [r#"{"key":"a\\b\u001b \"q\" gr\u00fcn"}"#, "[\"gr\u{fc}n \u{65e5} cafe\u{301}\"]"]
    {
        assert_eq!(visible_json(plain), plain);
    }
}
