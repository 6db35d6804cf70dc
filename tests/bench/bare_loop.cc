// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

/*
 * The same packets through a bare event loop: what the bookkeeping of a lossless fabric costs when
 * nothing else is there. No ns-3, no virtual call, no object on the heap a packet: a ring of
 * buckets of events, credits on each link, a queue for each input at each output, round robin.
 *
 * It is no simulator to rely on: events of one bucket (128 ps) are not sorted, and nothing is
 * measured. About three events a packet-hop, the textbook number: a head arrives, an output is
 * free again, a credit is back.
 */

#include "moves.h"

#include <algorithm>

namespace
{

constexpr uint32_t NONE = 0xffffffffU;

/// Events in a ring of buckets; in a bucket, first in, first out.
class BucketQueue
{
  public:
    enum Kind : uint32_t
    {
        EMIT,
        HEAD,
        FREE,
        CREDIT,
    };

    struct Event
    {
        int64_t timePs;
        uint32_t kind;
        uint32_t place;  // source, or link
        uint32_t packet; // packet, or bytes of credit
        uint32_t next;
    };

    BucketQueue()
        : m_first(N_BUCKETS, NONE),
          m_last(N_BUCKETS, NONE)
    {
    }

    void Push(int64_t timePs, Kind kind, uint32_t place, uint32_t packet)
    {
        uint32_t index = m_free;
        if (index == NONE)
        {
            index = static_cast<uint32_t>(m_pool.size());
            m_pool.emplace_back();
        }
        else
        {
            m_free = m_pool[index].next;
        }
        m_pool[index] = {timePs, kind, place, packet, NONE};
        // beyond the ring (2 us) an event waits in the last bucket and is pushed again
        const int64_t bucket = std::min(timePs >> SHIFT, m_now + N_BUCKETS - 1);
        const auto slot = static_cast<uint32_t>(bucket & (N_BUCKETS - 1));
        if (m_first[slot] == NONE)
        {
            m_first[slot] = index;
        }
        else
        {
            m_pool[m_last[slot]].next = index;
        }
        m_last[slot] = index;
        ++m_size;
    }

    bool Pop(Event& event)
    {
        while (m_size > 0)
        {
            const auto slot = static_cast<uint32_t>(m_now & (N_BUCKETS - 1));
            const uint32_t index = m_first[slot];
            if (index == NONE)
            {
                ++m_now;
                continue;
            }
            event = m_pool[index];
            m_first[slot] = event.next;
            m_pool[index].next = m_free;
            m_free = index;
            --m_size;
            if (event.timePs >> SHIFT > m_now)
            {
                Push(event.timePs, static_cast<Kind>(event.kind), event.place, event.packet);
                continue;
            }
            return true;
        }
        return false;
    }

  private:
    static constexpr int64_t N_BUCKETS = 1 << 14;
    static constexpr int SHIFT = 7;

    std::vector<Event> m_pool;
    std::vector<uint32_t> m_first;
    std::vector<uint32_t> m_last;
    uint32_t m_free{NONE};
    int64_t m_now{0};
    uint64_t m_size{0};
};

/// Links, switches and packets as flat arrays.
class BareFabric
{
  public:
    explicit BareFabric(const Moves& moves)
        : m_moves(moves),
          m_links(moves.linkSrc.size()),
          m_packets(moves.packetDst.size()),
          m_turn(moves.groupStart.size() - 1, 0),
          m_next(moves.sourceStart.begin(), moves.sourceStart.end() - 1)
    {
        std::vector<uint32_t> nInputs(moves.isEndpoint.size(), 0);
        for (size_t i = 0; i < m_links.size(); ++i)
        {
            Link& link = m_links[i];
            link.credit = moves.bufferBytes[moves.linkDst[i]];
            link.dst = static_cast<uint32_t>(moves.linkDst[i]);
            link.isLast = moves.isEndpoint[link.dst] != 0;
            link.input = moves.linkUsed[i] != 0 ? nInputs[link.dst]++ : 0;
            link.latencyPs = moves.linkDelayPs[i] + moves.forwardPs[link.dst];
            link.psPerByte = 1e12 / static_cast<double>(moves.linkRate[i]);
        }
        uint32_t nQueues = 0;
        for (size_t i = 0; i < m_links.size(); ++i)
        {
            const int64_t src = moves.linkSrc[i];
            m_links[i].firstQueue = nQueues;
            m_links[i].nInputs = moves.isEndpoint[src] != 0 ? 1 : std::max(1U, nInputs[src]);
            nQueues += m_links[i].nInputs;
        }
        m_queues.resize(nQueues);
        for (size_t packet = 0; packet < m_packets.size(); ++packet)
        {
            m_packets[packet].dst = static_cast<uint32_t>(moves.packetDst[packet]);
            m_packets[packet].bytes =
                static_cast<uint32_t>(moves.packetBytes[packet] + moves.headerBytes);
        }
        for (size_t source = 0; source < moves.source.size(); ++source)
        {
            m_events.Push(moves.sourceGapPs[source],
                          BucketQueue::EMIT,
                          static_cast<uint32_t>(source),
                          0);
        }
    }

    void Run()
    {
        BucketQueue::Event event;
        while (m_events.Pop(event))
        {
            ++report.events;
            switch (event.kind)
            {
            case BucketQueue::EMIT:
                Emit(event.place, event.timePs);
                break;
            case BucketQueue::HEAD:
                Head(event.place, event.packet, event.timePs);
                break;
            case BucketQueue::FREE:
                m_links[event.place].isBusy = false;
                Serve(event.place, event.timePs);
                break;
            case BucketQueue::CREDIT:
                m_links[event.place].credit += event.packet;
                Serve(event.place, event.timePs);
                break;
            }
        }
    }

    Report report; //!< what happened

  private:
    struct Link
    {
        int64_t credit;      // bytes free in the buffer at the end
        int64_t latencyPs;   // delay, and forwarding latency of the switch at the end
        double psPerByte;    // time on the wire
        uint32_t dst;        // node at the end
        uint32_t input;      // number among the inputs of that node
        uint32_t firstQueue; // queues of this output, one for each input of its node
        uint32_t nInputs;    // how many
        uint32_t last{0};    // input served last
        uint32_t nWaiting{0};
        bool isLast;
        bool isBusy{false};
    };

    struct Packet
    {
        uint32_t dst;
        uint32_t bytes;
        uint32_t inLink{NONE};
        uint32_t next{NONE};
    };

    struct Queue
    {
        uint32_t head{NONE};
        uint32_t tail{NONE};
    };

    void Emit(uint32_t source, int64_t nowPs)
    {
        const auto packet = static_cast<uint32_t>(m_next[source]++);
        Enqueue(static_cast<uint32_t>(m_moves.packetLink[packet]), 0, packet, nowPs);
        if (m_next[source] < m_moves.sourceStart[source + 1])
        {
            m_events.Push(nowPs + m_moves.sourceGapPs[source], BucketQueue::EMIT, source, 0);
        }
    }

    void Head(uint32_t inLink, uint32_t packet, int64_t nowPs)
    {
        const uint32_t node = m_links[inLink].dst;
        const int64_t group = m_moves.Group(node, m_packets[packet].dst);
        const int64_t begin = m_moves.groupStart[group];
        int64_t& turn = m_turn[group];
        turn = turn + 1 < m_moves.groupStart[group + 1] - begin ? turn + 1 : 0;
        Enqueue(static_cast<uint32_t>(m_moves.groupLink[begin + turn]),
                m_links[inLink].input,
                packet,
                nowPs);
    }

    void Enqueue(uint32_t index, uint32_t input, uint32_t packet, int64_t nowPs)
    {
        Link& link = m_links[index];
        Queue& queue = m_queues[link.firstQueue + input];
        m_packets[packet].next = NONE;
        (queue.head == NONE ? queue.head : m_packets[queue.tail].next) = packet;
        queue.tail = packet;
        ++link.nWaiting;
        Serve(index, nowPs);
    }

    void Serve(uint32_t index, int64_t nowPs)
    {
        Link& link = m_links[index];
        if (link.isBusy || link.nWaiting == 0)
        {
            return;
        }
        uint32_t input = link.last;
        do
        {
            input = input + 1 < link.nInputs ? input + 1 : 0;
        } while (m_queues[link.firstQueue + input].head == NONE);
        Queue& queue = m_queues[link.firstQueue + input];
        const uint32_t index2 = queue.head;
        Packet& packet = m_packets[index2];
        if (link.credit < packet.bytes)
        {
            return; // the credit's event comes back here
        }
        queue.head = packet.next;
        link.last = input;
        --link.nWaiting;
        link.credit -= packet.bytes;
        link.isBusy = true;
        ++report.packetHops;
        const auto onWirePs = static_cast<int64_t>(packet.bytes * link.psPerByte + 0.5);
        const int64_t endPs = nowPs + onWirePs;
        m_events.Push(endPs, BucketQueue::FREE, index, 0);
        if (packet.inLink != NONE)
        {
            m_events.Push(endPs + m_moves.linkDelayPs[packet.inLink],
                          BucketQueue::CREDIT,
                          packet.inLink,
                          packet.bytes);
        }
        if (!link.isLast)
        {
            packet.inLink = index;
            m_events.Push(nowPs + link.latencyPs, BucketQueue::HEAD, index, index2);
            return;
        }
        ++report.packets;
        report.bytes += packet.bytes - m_moves.headerBytes;
        report.simulatedPs = std::max(report.simulatedPs, endPs + link.latencyPs);
        m_events.Push(endPs + 2 * link.latencyPs, BucketQueue::CREDIT, index, packet.bytes);
    }

    const Moves& m_moves;
    BucketQueue m_events;
    std::vector<Link> m_links;
    std::vector<Packet> m_packets;
    std::vector<Queue> m_queues;
    std::vector<int64_t> m_turn;
    std::vector<int64_t> m_next;
};

} // namespace

int
main(int argc, char* argv[])
{
    if (argc != 2)
    {
        std::fputs("usage: bare_loop MOVES\n", stderr);
        return 2;
    }
    const Moves moves(argv[1]);
    BareFabric fabric(moves);
    const double start = CpuSeconds();
    fabric.Run();
    fabric.report.cpuS = CpuSeconds() - start;
    fabric.report.Print();
    return 0;
}
