# What HTTP says about a request by itself.
package aip.lib.http

# Methods that are defined to change nothing (RFC 9110, section 9.2.1).
safe_methods := {"GET", "HEAD", "OPTIONS", "TRACE"}

safe if input.request.method in safe_methods
