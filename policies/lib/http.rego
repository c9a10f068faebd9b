# What HTTP says about a request by itself.
package aip.lib.http

# Whether the method is defined to change nothing (RFC 9110, section 9.2.1).
safe(method) if method in {"GET", "HEAD", "OPTIONS", "TRACE"}
