//! Just enough of Rego's lexical grammar to count brackets and to see the names before the parser does.
//!
//! It must cut the text exactly as the engine does, or a bracket could hide in what only one of them takes for a string.
//! Where the engine would refuse a character, so does this; what it can't be sure of, it refuses.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Name,
    Text,
    Number,
    Symbol,
    Comment,
}

/// A token and where it begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A text that is not Rego, and where.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) message: &'static str,
}

/// The tokens of the text, comments included.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, Unreadable> {
    let mut lexer = Lexer {
        text,
        at: 0,
        line: 1,
        line_start: 0,
    };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next_token()? {
        tokens.push(token);
    }
    Ok(tokens)
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
    line_start: usize,
}

impl<'a> Lexer<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn column(&self, at: usize) -> u32 {
        u32::try_from(at - self.line_start).map_or(u32::MAX, |column| column.saturating_add(1))
    }

    fn fail(&self, message: &'static str) -> Unreadable {
        Unreadable {
            line: self.line,
            column: self.column(self.at),
            message,
        }
    }

    fn next_token(&mut self) -> Result<Option<Token<'a>>, Unreadable> {
        self.skip_space()?;
        let (start, line, column) = (self.at, self.line, self.column(self.at));
        let Some(byte) = self.peek() else { return Ok(None) };
        let kind = match byte {
            b'#' => {
                self.skip_while(|byte| byte != b'\n');
                if self.text[start..self.at].contains('\0') {
                    return Err(self.fail("a NUL byte ends the text for the engine"));
                }
                Kind::Comment
            }
            b'"' => self.string()?,
            b'`' => self.raw_string()?,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                self.skip_while(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                Kind::Name
            }
            b'0'..=b'9' => {
                self.skip_while(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                Kind::Number
            }
            b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'+' | b'-' | b'*' | b'/' | b'%' | b',' | b';' | b'.' | b'&'
            | b'|' | b':' | b'<' | b'>' | b'=' | b'!' => {
                self.at += 1;
                Kind::Symbol
            }
            _ => return Err(self.fail("a character that Rego has no use for")),
        };
        Ok(Some(Token {
            kind,
            text: &self.text[start..self.at],
            line,
            column,
        }))
    }

    fn skip_while(&mut self, accept: impl Fn(u8) -> bool) {
        while self.peek().is_some_and(&accept) {
            self.at += 1;
        }
    }

    fn skip_space(&mut self) -> Result<(), Unreadable> {
        loop {
            match self.peek() {
                Some(b' ' | b'\t') => self.at += 1,
                Some(b'\r') if self.text.as_bytes().get(self.at + 1) == Some(&b'\n') => self.at += 1,
                Some(b'\r') => return Err(self.fail("a carriage return without a line feed")),
                Some(b'\n') => self.new_line(),
                _ => return Ok(()),
            }
        }
    }

    fn new_line(&mut self) {
        self.at += 1;
        self.line = self.line.saturating_add(1);
        self.line_start = self.at;
    }

    fn string(&mut self) -> Result<Kind, Unreadable> {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Kind::Text);
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' | b'u') => self.at += 1,
                        _ => return Err(self.fail("an escape that strings don't have")),
                    }
                }
                None | Some(0..=0x1f) => return Err(self.fail("a string that isn't closed on its line")),
                Some(_) => self.at += 1,
            }
        }
    }

    fn raw_string(&mut self) -> Result<Kind, Unreadable> {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'`') => {
                    self.at += 1;
                    return Ok(Kind::Text);
                }
                None | Some(0) => return Err(self.fail("a raw string that isn't closed")),
                Some(b'\n') => self.new_line(),
                Some(_) => self.at += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        tokens(text).unwrap().into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn brackets_in_strings_and_comments_are_not_brackets() {
        assert_eq!(texts(r#"a := "[{(" # [{("#), ["a", ":", "=", r#""[{(""#, "# [{("]);
        assert_eq!(texts("`[\n{` {"), ["`[\n{`", "{"]);
    }

    #[test]
    fn an_escaped_quote_doesnt_end_a_string() {
        assert_eq!(texts(r#""\"[" ["#), [r#""\"[""#, "["]);
        assert_eq!(texts(r#""\\" ["#), [r#""\\""#, "["]);
    }

    #[test]
    fn a_backslash_ends_nothing_in_a_raw_string() {
        assert_eq!(texts(r"`\` ["), [r"`\`", "["]);
    }

    #[test]
    fn what_the_engine_stops_at_is_refused() {
        // The engine takes NUL for the end of the text: what follows would be invisible to one of the two.
        for text in [
            "a \0 b", "# c\0\nb", "`\0`", "\"\0\"", "a \r b", "\"a\nb\"", "\u{a0}", "\"", "`",
        ] {
            assert!(tokens(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn lines_and_columns_count_from_one() {
        let tokens = tokens("a\n  b `x\ny` c").unwrap();
        let places: Vec<(u32, u32)> = tokens.iter().map(|token| (token.line, token.column)).collect();
        assert_eq!(places, [(1, 1), (2, 3), (2, 5), (3, 4)]);
    }
}
