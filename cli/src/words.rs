//! The words of [`image::options`] as flags: what each takes, does and means stands there alone.

use std::marker::PhantomData;

use clap::builder::{PossibleValuesParser, ValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use image::options::{Options, OptionsError, Takes, Used, Word};

/// A command that has some of the words.
pub(crate) trait Has {
    /// Which command.
    const USED: Used;
}

/// `image convert`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForConvert;

/// `image merge`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForMerge;

impl Has for ForConvert {
    const USED: Used = Used::Convert;
}

impl Has for ForMerge {
    const USED: Used = Used::Merge;
}

/// The options that a command was given.
#[derive(Clone, Debug)]
pub(crate) struct Words<C>(pub(crate) Options, PhantomData<C>);

impl<C: Has> Args for Words<C> {
    fn augment_args(command: Command) -> Command {
        command.args(Word::all(C::USED).map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<C: Has> FromArgMatches for Words<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut options = Options::default();
        for word in Word::all(C::USED) {
            if word.takes == Takes::Switch {
                if matches.get_flag(word.name) {
                    word.set(&mut options, "true").map_err(usage)?;
                }
                continue;
            }
            for value in matches.get_many::<String>(word.name).into_iter().flatten() {
                word.set(&mut options, value).map_err(usage)?;
            }
        }
        options.check().map_err(usage)?;
        Ok(Self(options, PhantomData))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn usage(error: OptionsError) -> Error {
    Error::raw(ErrorKind::ValueValidation, format!("{error}\n"))
}

fn flag(word: &'static Word) -> Arg {
    let help = match word.default {
        Some(default) if !matches!(word.takes, Takes::Switch) => {
            format!("{} [default: {default}]", word.help)
        }
        _ => word.help.to_owned(),
    };
    let arg = Arg::new(word.name).long(word.name).help(help);
    match word.takes {
        Takes::Switch => arg.action(ArgAction::SetTrue),
        Takes::OneOf(values) => arg.value_parser(PossibleValuesParser::new(values)),
        Takes::One(name) => arg.value_name(name).value_parser(checked(word)).allow_hyphen_values(true),
        Takes::Many(name) => arg.value_name(name).value_parser(checked(word)).action(ArgAction::Append),
    }
}

/// Lets values through that mean something.
fn checked(word: &'static Word) -> ValueParser {
    ValueParser::from(move |value: &str| match word.set(&mut Options::default(), value) {
        Ok(()) => Ok(value.to_owned()),
        Err(OptionsError::Value { reason, .. }) => Err(reason),
        Err(error) => Err(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(flags: &[&str]) -> Result<Options, String> {
        let command = Words::<ForConvert>::augment_args(Command::new("convert"));
        let matches = command.try_get_matches_from([&["convert"], flags].concat());
        let words = matches.and_then(|matches| Words::<ForConvert>::from_arg_matches(&matches));
        words.map(|words| words.0).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_fill_the_options_that_keys_fill() {
        let options =
            given(&["--chunk-size", "64K", "--prefetch", "/a,/b", "--prefetch=/c", "--also-oci"]).unwrap();
        let mut expected = Options::default();
        for (word, value) in [("chunk-size", "64K"), ("prefetch", "/a,/b,/c"), ("also-oci", "true")] {
            assert!(expected.set(Used::Convert, word, value).unwrap());
        }
        assert_eq!(options, expected);
    }

    #[test]
    fn what_is_wrong_is_said_in_the_words_of_the_command_line() {
        for (flags, part) in [
            (&["--chunk-size", "5K"][..], "'--chunk-size <BYTES>': expected a power of two from 4K to 16M"),
            (&["--compressor", "gzip"], "[possible values: zstd, lz4, none]"),
            (
                &["--compressor", "lz4", "--compression-level", "-3"],
                "compression-level=-3 with compressor=lz4",
            ),
            (&["--platform", "linux"], "expected OS/ARCH"),
        ] {
            let error = given(flags).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
