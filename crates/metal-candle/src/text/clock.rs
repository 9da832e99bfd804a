//! Calendar dates for `strftime_now`, which some chat templates call to state today's date.
//!
//! Dates are UTC, so that a template renders the same on every machine. No time zone, no locale but English.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// Seconds since 1970-01-01 00:00 UTC by the system's clock.
pub(super) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64)
}

/// Year, month (1..=12) and day (1..=31) of a count of days since 1970-01-01, in the proleptic Gregorian calendar.
///
/// Years are counted from 1 March, so that the leap day is the last of its year; 146097 days make 400 years.
fn civil(days: i64) -> (i64, usize, i64) {
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month as usize, day)
}

/// Formats `seconds` since 1970 (UTC) by C's `strftime` letters; a letter outside the common ones is an error.
pub(super) fn strftime(format: &str, seconds: i64) -> Result<String, String> {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (year, month, day) = civil(days);
    let (weekday, month_name) = (DAYS[(days + 4).rem_euclid(7) as usize], MONTHS[month - 1]);
    let day_of_year = (1..=366).find(|n| civil(days - n).0 < year).unwrap_or(1);
    let hour12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut letter = letters.next();
        let bare = letter == Some('-'); // %-d: no leading zero
        if bare {
            letter = letters.next();
        }
        let width = |full: usize| if bare { 0 } else { full };
        let written = match letter {
            Some('Y') => write!(out, "{year}"),
            Some('y') => write!(out, "{:0w$}", year.rem_euclid(100), w = width(2)),
            Some('m') => write!(out, "{month:0w$}", w = width(2)),
            Some('d') => write!(out, "{day:0w$}", w = width(2)),
            Some('e') => write!(out, "{day:w$}", w = width(2)),
            Some('H') => write!(out, "{hour:0w$}", w = width(2)),
            Some('I') => write!(out, "{hour12:0w$}", w = width(2)),
            Some('M') => write!(out, "{minute:0w$}", w = width(2)),
            Some('S') => write!(out, "{second:0w$}", w = width(2)),
            Some('j') => write!(out, "{day_of_year:0w$}", w = width(3)),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('B') => write!(out, "{month_name}"),
            Some('b' | 'h') => write!(out, "{}", &month_name[..3]),
            Some('A') => write!(out, "{weekday}"),
            Some('a') => write!(out, "{}", &weekday[..3]),
            Some('F') => write!(out, "{year}-{month:02}-{day:02}"),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => write!(out, "UTC"),
            Some('%') => write!(out, "%"),
            other => {
                return Err(format!("strftime_now: unknown format letter {other:?} in {format:?}"));
            }
        };
        written.map_err(|error| error.to_string())?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected strings are Python's `datetime.fromtimestamp(s, timezone.utc).strftime(f)`.
    #[test]
    fn agrees_with_python() {
        for (seconds, format, expected) in CASES {
            assert_eq!(
                strftime(format, *seconds).as_deref(),
                Ok(*expected),
                "{seconds} {format}"
            );
        }
    }

    #[test]
    fn unknown_letters_are_errors() {
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("50%", 0).is_err());
    }

    const CASES: &[(i64, &str, &str)] = &[
        (0, "%d %b %Y", "01 Jan 1970"),
        (951_782_400, "%d %B %Y %A %j", "29 February 2000 Tuesday 060"),
        (
            1_735_689_599,
            "%Y-%m-%d %H:%M:%S %a %j %p %I %y",
            "2024-12-31 23:59:59 Tue 366 PM 11 24",
        ),
        (1_741_305_600, "%-d/%-m %e|%%|%F %T", "7/3  7|%|2025-03-07 00:00:00"),
        (4_107_542_399, "%d %b %Y", "28 Feb 2100"),
        (4_107_542_400, "%d %b %Y", "01 Mar 2100"),
        (-1, "%d %b %Y %H", "31 Dec 1969 23"),
    ];
}
