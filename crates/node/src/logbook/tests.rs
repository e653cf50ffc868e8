use super::*;

fn container(concurrency: u32, limit_bytes: usize) -> (Arc<LogBook>, Arc<ContainerLog>) {
    let book = Arc::new(LogBook::default());
    let log = book.container("n1-1-1".into(), concurrency, limit_bytes);
    (book, log)
}

/// As it is once some of its runs were silent.
fn trusted(concurrency: u32) -> (Arc<LogBook>, Arc<ContainerLog>) {
    let (book, log) = container(concurrency, 1000);
    for _ in 0..DOUBTED_RUNS {
        assert!(!log.was_silent("before", Some(0)));
    }
    (book, log)
}

fn end(log: &ContainerLog, activation: &str) {
    log.end(Stream::Stdout, activation);
    log.end(Stream::Stderr, activation);
}

fn text(line: &str) -> &str {
    line.split_once(" ").unwrap_or_default().1.trim_start()
}

#[tokio::test]
async fn lines_are_taken_when_both_streams_have_ended() {
    let (_book, log) = container(4, 1000);
    log.run_begins("a");
    let taken = tokio::spawn({
        let log = log.clone();
        async move { log.take("a", Some(1)).await }
    });
    tokio::task::yield_now().await;
    log.line(Stream::Stdout, Some("a"), "hello");
    end(&log, "a");
    let lines = taken.await.unwrap_or_default();
    assert_eq!(lines.iter().map(|line| text(line)).collect::<Vec<_>>(), ["stdout: hello"]);
}

#[tokio::test]
async fn lines_of_a_child_are_not_counted_as_the_runs_own() {
    let (_book, log) = container(1, 1000);
    log.run_begins("a");
    log.line(Stream::Stdout, None, "a child's");
    let taken = tokio::spawn({
        let log = log.clone();
        async move { log.take("a", Some(1)).await }
    });
    tokio::task::yield_now().await;
    // The reader lags behind.
    log.line(Stream::Stdout, Some("a"), "its own");
    end(&log, "a");
    let lines = taken.await.unwrap_or_default();
    assert_eq!(lines.iter().map(|line| text(line)).collect::<Vec<_>>(), ["stdout: a child's", "stdout: its own"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_run_wrote_at_its_beginning_is_there_minutes_later_whatever_others_wrote_meanwhile() {
    let (_book, log) = container(2, 1000);
    log.run_begins("long");
    log.line(Stream::Stdout, Some("long"), "it begins");
    tokio::time::advance(Duration::from_secs(300)).await;
    log.run_begins("short");
    log.line(Stream::Stdout, Some("short"), "hello");
    end(&log, "long");
    assert_eq!(
        log.take("long", Some(1)).await.iter().map(|line| text(line)).collect::<Vec<_>>(),
        ["stdout: it begins"]
    );
}

#[tokio::test]
async fn lines_that_wait_do_not_make_way_for_those_of_runs_that_have_taken_theirs() {
    let (book, log) = container(2, 1000);
    log.run_begins("long");
    log.line(Stream::Stdout, Some("long"), "it begins");
    for n in 0..3 * MOST_ACTIVATIONS {
        let short = format!("short-{n}");
        log.run_begins(&short);
        log.line(Stream::Stdout, Some(&short), "hello");
        assert_eq!(book.lines(&short).len(), 1);
    }
    assert!(book.lock().order.len() <= 2 * MOST_ACTIVATIONS);
    assert_eq!(book.lines("long").len(), 1);
}

#[tokio::test]
async fn a_line_that_names_an_activation_of_another_container_is_not_believed() {
    let (book, log) = container(4, 1000);
    log.line(Stream::Stdout, Some("stranger"), "forged");
    end(&log, "stranger");
    assert!(book.lines("stranger").is_empty());
    assert_eq!(log.take("a", Some(0)).await.len(), 1);
}

#[tokio::test]
async fn an_end_mark_without_a_name_ends_the_only_run_and_is_no_line() {
    let ((_book, alone), (_other, shared)) = (container(1, 1000), container(2, 1000));
    alone.run_begins("a");
    alone.line(Stream::Stdout, None, "mine");
    alone.line(Stream::Stdout, None, END_MARK);
    alone.line(Stream::Stderr, None, END_MARK);
    let lines = alone.take("a", None).await;
    assert!(lines.len() == 1 && lines[0].ends_with("mine"), "{lines:?}");
    shared.run_begins("b");
    shared.line(Stream::Stdout, None, END_MARK);
    assert!(shared.take("b", Some(0)).await.is_empty());
}

#[tokio::test]
async fn lines_beyond_the_limit_are_counted_and_cut() {
    let (_book, log) = container(1, 100);
    log.run_begins("a");
    for _ in 0..3 {
        log.line(Stream::Stdout, Some("a"), "a line of about eighty bytes with its stamp before it, or so");
    }
    end(&log, "a");
    let lines = log.take("a", Some(3)).await;
    assert!(lines.len() == 2 && lines[1].contains("2 more lines were cut"), "{lines:?}");
}

#[tokio::test]
async fn a_line_without_a_mark_belongs_to_the_only_run_or_is_kept_unattributed() {
    let ((_book, alone), (_other, shared)) = (container(1, 1000), container(2, 1000));
    for (log, expected) in [(alone, "stdout: whose?"), (shared, "stdout: [unattributed] whose?")] {
        log.run_begins("a");
        log.line(Stream::Stdout, None, "whose?");
        assert!(!log.was_silent("a", Some(0)), "though it wrote nothing itself");
        let lines = log.take("a", Some(0)).await;
        assert_eq!(lines.iter().map(|line| text(line)).collect::<Vec<_>>(), [expected]);
    }
}

#[tokio::test]
async fn a_container_that_was_silent_is_believed_until_it_writes_something() {
    for concurrency in [1, 2] {
        let (book, log) = trusted(concurrency);
        log.run_begins("a");
        assert!(log.was_silent("a", Some(0)));
        assert!(!log.was_silent("a", Some(1)) && !log.was_silent("a", None), "there are lines, or may be");
        // It comes too late for the record, and waits for the next one.
        log.line(Stream::Stdout, None, "late");
        assert!(book.lines("a").is_empty(), "nobody would take them");
        log.run_begins("b");
        assert!(!log.was_silent("b", Some(0)));
        let lines = log.take("b", Some(0)).await;
        assert_eq!(lines.iter().map(|line| text(line)).collect::<Vec<_>>(), ["stdout: [unattributed] late"]);
    }
}

#[tokio::test]
async fn what_is_written_after_a_record_was_made_is_in_the_next_one_whoever_it_names() {
    let (book, log) = container(1, 1000);
    log.run_begins("a");
    assert!(log.take("a", Some(0)).await.is_empty());
    log.line(Stream::Stdout, None, "by a child");
    log.line(Stream::Stdout, Some("a"), "by a thread");
    assert!(book.lines("a").is_empty(), "nobody would take them");
    log.run_begins("b");
    assert_eq!(log.take("b", Some(0)).await.len(), 2);
}

#[tokio::test]
async fn a_peer_that_asks_gets_its_runs_lines_and_those_of_nobody_once() {
    let (book, log) = container(2, 1000);
    log.line(Stream::Stdout, None, "loading");
    log.run_begins("a");
    log.line(Stream::Stdout, Some("a"), "its own");
    book.leave("a", &log, Some(1));
    end(&log, "a");
    let lines = book.fetch("a").await;
    let expected = ["stdout: its own", "stdout: [unattributed] loading"];
    assert_eq!(lines.iter().map(|line| text(line)).collect::<Vec<_>>(), expected);
    assert!(book.fetch("a").await.is_empty() && book.fetch("unknown").await.is_empty());

    log.run_begins("b");
    log.line(Stream::Stdout, Some("b"), "last words");
    book.leave("b", &log, None);
    drop(log);
    assert_eq!(book.fetch("b").await.len(), 1, "its container is gone meanwhile");
}

#[tokio::test]
async fn lines_that_no_record_took_make_room_for_newer_ones_and_say_so() {
    let (_book, log) = container(2, 1000);
    for number in 0..MOST_UNCLAIMED + 7 {
        log.line(Stream::Stderr, None, &number.to_string());
    }
    let lines = log.take("a", Some(0)).await;
    assert_eq!(lines.len(), MOST_UNCLAIMED + 1);
    assert_eq!(
        (text(&lines[0]), text(&lines[1])),
        ("stderr: [unattributed] [7 lines dropped]", "stderr: [unattributed] 7")
    );
    assert!(log.take("b", Some(0)).await.is_empty());
}
