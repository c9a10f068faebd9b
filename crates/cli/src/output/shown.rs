//! Text that others wrote, as a terminal may show it: agents choose tools, paths and answers, and a terminal takes some
//! characters for orders (to move, to clear, to rename its window) or writes backwards what follows them.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

/// Whether a character orders something instead of being seen: controls of ASCII and of Latin-1, what turns the direction
/// of writing (Unicode's annex 9; CVE-2021-42574), and what separates lines where nobody looks for it.
fn is_order(char: char) -> bool {
    matches!(char,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || char.is_control()
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let orders = |char: char| is_order(char) && !is_kept(char);
    if !text.contains(orders) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        match orders(char) {
            true => out.extend(char.escape_unicode()),
            false => out.push(char),
        }
    }
    Cow::Owned(out)
}

/// Text in one line: a line's end in it is shown, too, and begins no line of its own.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// Characters of a text of a record that a line shows: a record may have half a megabyte.
const BRIEF: usize = 300;

/// What a record says, in one line of bounded length.
pub(crate) fn brief(text: &str) -> String {
    let mut shown = one_line(text).into_owned();
    if let Some((end, _)) = shown.char_indices().nth(BRIEF) {
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

/// Text of some lines.
pub(super) fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |char| matches!(char, '\n' | '\t'))
}

/// A JSON document as text, with every such character in its JSON spelling: it stands in strings only, and reads back as
/// what it was.
pub(super) fn json(text: &str) -> Cow<'_, str> {
    // Between its parts a document has line ends; within strings they are spelled already.
    let orders = |char: char| is_order(char) && char != '\n';
    if !text.contains(orders) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        match orders(char) {
            // All of them are in the basic plane.
            true => out.push_str(&format!("\\u{:04x}", u32::from(char))),
            false => out.push(char),
        }
    }
    Cow::Owned(out)
}

/// The body of an answer, printed as it comes: to a file or another program byte for byte, to a terminal as text.
#[derive(Debug)]
pub(crate) struct Printed {
    is_terminal: bool,
    /// The beginning of a character whose end has not come.
    begun: Vec<u8>,
}

impl Printed {
    pub(crate) fn new() -> Self {
        Self {
            is_terminal: io::stdout().is_terminal(),
            begun: Vec::new(),
        }
    }

    /// Prints the next bytes at once. A closed pipe (`aip … | head`) is no failure.
    pub(crate) fn part(&mut self, bytes: &[u8]) {
        let text = self.text(bytes);
        let mut out = io::stdout().lock();
        let _ = out.write_all(&text).and_then(|()| out.flush());
    }

    fn text<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if !self.is_terminal {
            return Cow::Borrowed(bytes);
        }
        self.begun.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.begun) {
            // A character goes on in the next part; what is no text at all is shown as such.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.begun.len(),
        };
        let rest = self.begun.split_off(whole);
        let text = String::from_utf8_lossy(&self.begun);
        let shown = lines(&text).into_owned().into_bytes();
        self.begun = rest;
        Cow::Owned(shown)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::output::{Table, cell};

    /// Clears the screen; writes backwards; as one byte of Latin-1, begins an order; rings.
    const TOOLS: [(&str, &str); 5] = [
        ("\u{1b}[2J", "\\u{1b}[2J"),
        ("read\u{202e}etirw", "read\\u{202e}etirw"),
        ("\u{2066}a\u{2069}", "\\u{2066}a\\u{2069}"),
        ("\u{9b}31m", "\\u{9b}31m"),
        ("a\u{7}\r\u{7f}", "a\\u{7}\\u{d}\\u{7f}"),
    ];

    #[test]
    fn what_orders_a_terminal_is_shown_and_not_obeyed() {
        for (tool, shown) in TOOLS {
            assert_eq!(one_line(tool), shown);
            assert_eq!(lines(tool), shown);
            assert_eq!(cell(&json!(tool)), shown);
            assert_eq!(cell(&json!([tool, {"a": tool}])), format!("{shown},a={shown}"));
            let mut table = Table::new(["TOOL", "NEXT"]);
            table.row([tool.into(), "x".into()]);
            let rendered = table.render();
            assert!(rendered.ends_with(&format!("{shown}  x")), "{rendered:?}");
        }
        let plain = "Grüße, 世界 👩‍🚀 – done";
        assert!(matches!(one_line(plain), Cow::Borrowed(_)) && one_line(plain) == plain);
    }

    #[test]
    fn a_cell_begins_no_line_of_its_own() {
        let mut table = Table::new(["TOOL"]);
        table.row(["a\nforged".into()]);
        assert_eq!(table.render(), "TOOL\na\\u{a}forged");
        assert_eq!(cell(&json!("a\nforged")), "a\\u{a}forged");
        assert_eq!(lines("two\n\tlines"), "two\n\tlines");
    }

    #[test]
    fn what_a_record_says_takes_a_line_and_no_more() {
        assert_eq!(brief("a\nforged"), "a\\u{a}forged");
        assert_eq!(brief(&"é".repeat(BRIEF)), "é".repeat(BRIEF));
        let long = brief(&"é".repeat(100_000));
        assert!(long.chars().count() == BRIEF + 1 && long.ends_with('…'));
    }

    #[test]
    fn json_reads_back_as_what_it_was() {
        for (tool, _) in TOOLS {
            let document = json!({"tool": tool, tool: [1, tool]});
            for text in [document.to_string(), serde_json::to_string_pretty(&document).unwrap()] {
                let printed = json(&text);
                assert!(!printed.contains(|c| is_order(c) && c != '\n'), "{printed:?}");
                assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), document);
            }
        }
    }

    #[test]
    fn a_body_is_bytes_for_programs_and_text_for_terminals() {
        let bytes = "a\u{1b}[2Jé\n".as_bytes();
        let printed = |is_terminal| {
            let mut printed = Printed {
                is_terminal,
                begun: Vec::new(),
            };
            // Cut within a character.
            let parts = bytes.chunks(6).flat_map(|part| printed.text(part).into_owned());
            String::from_utf8(parts.collect()).unwrap()
        };
        assert_eq!(printed(false).as_bytes(), bytes);
        assert_eq!(printed(true), "a\\u{1b}[2Jé\n");
    }
}
