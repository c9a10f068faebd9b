//! How the demo prints times and long lines.

use std::time::Duration;

/// A time as the demo prints it.
pub(super) fn millis(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1_000.0;
    if ms < 10.0 {
        format!("{ms:.2} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

/// Text in lines of at most `width`, broken at blanks where there are any.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(8);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last().map_or(0, |l| l.chars().count());
            let blank = usize::from(line > 0);
            if line + blank + word.len() <= width {
                if let Some(last) = lines.last_mut() {
                    if blank == 1 {
                        last.push(' ');
                    }
                    last.extend(&word);
                }
                break;
            }
            if line > 0 {
                lines.push(String::new());
            } else {
                let rest = word.split_off(width);
                if let Some(last) = lines.last_mut() {
                    last.extend(&word);
                }
                lines.push(String::new());
                word = rest;
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_broken_and_nothing_is_lost() {
        assert_eq!(wrapped("one two three", 8), ["one two", "three"]);
        assert_eq!(wrapped("0123456789abcdef0123", 10), ["0123456789", "abcdef0123"]);
        assert_eq!(wrapped("", 10), [""]);
    }
}
