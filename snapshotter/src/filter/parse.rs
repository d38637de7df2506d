//! From text to selectors.

use regex::{Regex, RegexBuilder};

use super::{FieldCondition, FilterError, Selector};

/// Memory that one regular expression may take. Filters come from local clients; this is more than any needs.
const REGEX_LIMIT_BYTES: usize = 1 << 20;

/// Parses one filter.
pub(super) fn selectors(filter: &str) -> Result<Vec<Selector>, FilterError> {
    let mut parser = Parser { filter, characters: filter.chars().collect(), position: 0 };
    if parser.peek().is_none() {
        return Ok(Vec::new());
    }
    let mut selectors = vec![parser.selector()?];
    loop {
        match parser.peek() {
            None => return Ok(selectors),
            Some(',') => {
                parser.position += 1;
                selectors.push(parser.selector()?);
            }
            Some(other) => return Err(parser.error(format!("{other:?} is unexpected, expected \",\""))),
        }
    }
}

struct Parser<'f> {
    filter: &'f str,
    characters: Vec<char>,
    position: usize,
}

impl Parser<'_> {
    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.position += 1;
            path.push(self.field()?);
        }
        let condition = match self.peek() {
            None | Some(',') => FieldCondition::Present,
            Some(_) => self.condition()?,
        };
        Ok(Selector { path, condition })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        if self.peek() == Some('"') {
            return self.quoted('"');
        }
        let field = self.take_while(|c| c == '_' || c.is_ascii_alphanumeric());
        if field.is_empty() { Err(self.error("expected a field or a quoted field")) } else { Ok(field) }
    }

    fn condition(&mut self) -> Result<FieldCondition, FilterError> {
        let start = self.position;
        match self.take_while(|c| matches!(c, '=' | '!' | '~')).as_str() {
            "==" => Ok(FieldCondition::Equal(self.value(&['"'])?)),
            "!=" => Ok(FieldCondition::NotEqual(self.value(&['"'])?)),
            "~=" => {
                let start = self.position;
                let expression = self.value(&['"', '/', '|'])?;
                self.regex(&expression, start).map(FieldCondition::Matches)
            }
            other => {
                self.position = start;
                Err(self.error(format!("{other:?} is no operator, expected \"==\", \"!=\" or \"~=\"")))
            }
        }
    }

    fn value(&mut self, quotes: &[char]) -> Result<String, FilterError> {
        match self.peek() {
            Some(quote @ ('"' | '/' | '|')) if quotes.contains(&quote) => self.quoted(quote),
            Some(quote @ ('/' | '|')) => Err(self.error(format!("{quote} quotes only after \"~=\""))),
            _ => {
                let value =
                    self.take_while(|c| c != ',' && c != '\0' && !c.is_whitespace() && !c.is_control());
                if value.is_empty() {
                    Err(self.error("expected a value or a quoted value"))
                } else {
                    Ok(value)
                }
            }
        }
    }

    fn regex(&mut self, expression: &str, start: usize) -> Result<Regex, FilterError> {
        RegexBuilder::new(expression).size_limit(REGEX_LIMIT_BYTES).build().map_err(|error| {
            self.position = start;
            self.error(format!("not a regular expression: {error}"))
        })
    }

    /// A string quoted by `quote`, with Go's escape sequences.
    fn quoted(&mut self, quote: char) -> Result<String, FilterError> {
        self.position += 1;
        let mut text = String::new();
        loop {
            match self.next() {
                Some(c) if c == quote => return Ok(text),
                Some('\\') => text.push(self.escape(quote)?),
                None | Some('\n') => return Err(self.error("the quotation does not end")),
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self, quote: char) -> Result<char, FilterError> {
        match self.next() {
            Some('a') => Ok('\u{7}'),
            Some('b') => Ok('\u{8}'),
            Some('f') => Ok('\u{c}'),
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('t') => Ok('\t'),
            Some('v') => Ok('\u{b}'),
            Some('\\') => Ok('\\'),
            Some(c) if c == quote => Ok(c),
            Some('x') => self.number(2, 16),
            Some('u') => self.number(4, 16),
            Some('U') => self.number(8, 16),
            Some('0'..='7') => {
                self.position -= 1;
                self.number(3, 8)
            }
            _ => Err(self.error("no escape sequence")),
        }
    }

    /// A character by its number of exactly `digits` digits.
    fn number(&mut self, digits: usize, base: u32) -> Result<char, FilterError> {
        let mut number = 0_u32;
        for _ in 0..digits {
            let digit = self.next().and_then(|c| c.to_digit(base));
            let digit =
                digit.ok_or_else(|| self.error(format!("expected {digits} digits of base {base}")))?;
            // Eight hexadecimal digits fit.
            number = number.wrapping_mul(base).wrapping_add(digit);
        }
        char::from_u32(number).ok_or_else(|| self.error("not the number of a character"))
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let taken: String =
            self.characters.iter().skip(self.position).copied().take_while(|&c| wanted(c)).collect();
        self.position += taken.chars().count();
        taken
    }

    /// The next character that is not white space, without consuming it.
    fn peek(&mut self) -> Option<char> {
        while self.characters.get(self.position).is_some_and(|c| c.is_whitespace()) {
            self.position += 1;
        }
        self.characters.get(self.position).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.characters.get(self.position).copied();
        self.position += usize::from(next.is_some());
        next
    }

    fn error(&self, problem: impl Into<String>) -> FilterError {
        FilterError { filter: self.filter.to_owned(), position: self.position, problem: problem.into() }
    }
}
