use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;

/// A log and what reads it.
fn log() -> (Log, Flush, UnixStream) {
    let (ours, reader) = UnixStream::pair().unwrap();
    let (log, flush) = Log::on(File::from(std::os::fd::OwnedFd::from(ours))).unwrap();
    (log, flush, reader)
}

#[test]
fn lines_arrive_whole_and_in_order() {
    let (mut log, flush, reader) = log();
    for line in 0..100 {
        writeln!(log, "line {line}").unwrap();
    }
    drop(flush);
    let lines = BufReader::new(reader).lines().take(100).map(Result::unwrap);
    assert!(lines.eq((0..100).map(|line| format!("line {line}"))));
}

#[test]
fn who_does_not_read_holds_nobody_up_and_what_has_no_room_is_counted() {
    let (mut log, _flush, mut reader) = log();
    let line = [b'x'; 10_000];
    // More than the queue and any socket's buffer hold.
    for _ in 0..1000 {
        log.write_all(&line).unwrap();
    }
    let lost = log.lost();
    assert!(lost > 0);
    // Everything else is there as soon as somebody reads.
    let mut bytes = vec![0; (1000 - usize::try_from(lost).unwrap()) * line.len()];
    reader.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == b'x'));
}

#[test]
fn a_reader_that_is_gone_is_no_error() {
    let (mut log, flush, reader) = log();
    drop(reader);
    log.write_all(b"one\n").unwrap();
    drop(flush);
    assert_eq!(log.lost(), 1);
    log.write_all(b"two\n").unwrap();
}

#[test]
fn an_end_does_not_wait_for_who_does_not_read() {
    let (mut log, flush, _reader) = log();
    for _ in 0..1000 {
        log.write_all(&[b'x'; 10_000]).unwrap();
    }
    let begun = Instant::now();
    drop(flush);
    // An hour would be as good: what matters is that there is an end.
    assert!(begun.elapsed() >= LAST_LINES);
}

#[test]
fn lost_lines_are_told_once_the_others_are_read() {
    let queue = Queue::new(10);
    queue.push(b"12345");
    queue.push(b"67890");
    queue.push(b"x");
    queue.take();
    assert_eq!(queue.written(true), None, "a line is left");
    queue.take();
    assert_eq!(queue.written(false), None, "nobody reads");
    queue.push(b"again");
    queue.take();
    assert_eq!(queue.written(true), Some(2));
    queue.push(b"again");
    queue.take();
    assert_eq!(queue.written(true), None, "told already");
}
