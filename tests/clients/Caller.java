// An agent that calls what it is told to, with the two HTTP clients of the JDK.
import com.sun.net.httpserver.HttpServer;
import java.net.*;
import java.net.http.*;
import java.nio.file.*;

public class Caller {
    // What a program adds where its sidecar asks for the secret: AIP_URL holds it.
    static final Authenticator SECRET = new Authenticator() {
        @Override protected PasswordAuthentication getPasswordAuthentication() {
            String[] user = URI.create(System.getenv("AIP_URL")).getUserInfo().split(":", 2);
            return getRequestorType() == RequestorType.PROXY
                ? new PasswordAuthentication(user[0], user[1].toCharArray()) : null;
        }
    };

    static int client(URI url, boolean secret) throws Exception {
        var builder = HttpClient.newBuilder();
        if (secret) builder.authenticator(SECRET);
        var request = HttpRequest.newBuilder(url).build();
        return builder.build().send(request, HttpResponse.BodyHandlers.discarding()).statusCode();
    }

    // The lines of a stream, each marked as it comes: the agent goes on only then (witness.py).
    static String stream(URI url, boolean secret) throws Exception {
        var builder = HttpClient.newBuilder();
        if (secret) builder.authenticator(SECRET);
        var request = HttpRequest.newBuilder(url.resolve("/events?stream=java&steps=3")).build();
        var response = builder.build().send(request, HttpResponse.BodyHandlers.ofLines());
        var said = new StringBuilder(response.version() + " " + response.statusCode());
        for (var lines = response.body().iterator(); lines.hasNext();) {
            String[] words = lines.next().split(" ");
            if (words.length < 3) continue;
            Files.createFile(Path.of(System.getenv("STEPS"), "java." + words[2]));
            said.append(" ").append(words[2]);
        }
        return said.toString();
    }

    static int connection(URI url, boolean secret) throws Exception {
        var connection = (HttpURLConnection) url.toURL().openConnection();
        if (secret) connection.setAuthenticator(SECRET);
        return connection.getResponseCode();
    }

    public static void main(String[] arguments) throws Exception {
        URI url = URI.create(arguments[0]);
        var server = HttpServer.create(
            new InetSocketAddress("127.0.0.1", Integer.parseInt(System.getenv("PORT"))), 0);
        server.createContext("/", exchange -> {
            String how = exchange.getRequestURI().getPath();
            String said;
            try {
                boolean secret = how.endsWith("/secret");
                if (how.startsWith("/stream")) said = stream(url, secret);
                else said = "" + (how.startsWith("/client") ? client(url, secret) : connection(url, secret));
            } catch (Exception e) {
                said = e.toString();
            }
            exchange.sendResponseHeaders(200, said.length());
            exchange.getResponseBody().write(said.getBytes());
            exchange.close();
        });
        server.start();
    }
}
